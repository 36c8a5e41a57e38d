"""Writes and reads the files in eval/ of a run folder, and compares two evaluations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.progress import counting
from experiments.run_folder import Run
from transformer.config import UserError
from transformer.evaluation.metrics import METRICS, Outputs, signatures
from transformer.evaluation.significance import Comparison, compare
from transformer.files import atomic_write, read_json, write_json

SCOPE = "p-values are for this test set only and say nothing about other seeds"
MAX_NAME_BYTES = 240  # most systems allow 255, but a file has a longer name while it is written
IDENTITY = ("checkpoints", "params_sha256", "changes")  # entries of `scores` for the weights and the search


class Evaluation(NamedTuple):
    """The content of the files of an evaluation: the scores, the translations and the references."""

    scores: dict[str, Any]
    hypotheses: Sequence[str]
    references: Sequence[str]


class ScoreFiles(NamedTuple):
    """The files of an evaluation of a run on a split.

    Attributes:
      run: the run.
      split: the name of the split.
      changes: new values by config field, as given in `--set` for the evaluation.
    """

    run: Run
    split: str
    changes: dict[str, Any]

    @property
    def suffix(self) -> str:
        """The changes as part of a file name: a comma, key and value for each change, sorted by key."""
        return "".join(f",{key}={value}" for key, value in sorted(self.changes.items()))

    @property
    def name(self) -> str:
        """The name of the evaluation in `--compare`: the run folder and the changes."""
        return f"{self.run.folder}{self.suffix}"

    @property
    def command(self) -> str:
        """The command that writes the files."""
        command = f"python -m experiments.evaluate --workdir={self.run.folder} --split={self.split}"
        return command + self.suffix.replace(",", " --set=")

    def path(self, ending: str) -> Path:
        """Returns the path of the file whose name has the given ending, such as ".json".

        Raises:
          UserError: the changes cannot be part of a file name.
        """
        name = f"{self.split}{self.suffix}{ending}"
        if "/" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise UserError(
                f"{name!r} cannot be a file name: it contains '/' or is longer than {MAX_NAME_BYTES} bytes; "
                "change or shorten the values in --set"
            )
        return self.run.folder / "eval" / name

    def write(self, evaluation: Evaluation) -> None:
        """Writes .hyp.txt, .ref.txt and then .json."""
        self.path("").parent.mkdir(exist_ok=True)
        for ending, lines in ((".hyp.txt", evaluation.hypotheses), (".ref.txt", evaluation.references)):
            atomic_write(self.path(ending), "".join(f"{line}\n" for line in lines))
        write_json(self.path(".json"), evaluation.scores)

    def read(self) -> Evaluation:
        """Reads the files.

        Raises:
          UserError: a file is missing or incomplete.
        """
        scores, hypotheses, references = paths = [self.path(end) for end in (".json", ".hyp.txt", ".ref.txt")]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing; run {self.command}{self._alternatives()}")
        evaluation = Evaluation(read_json(scores), read_lines(hypotheses), read_lines(references))
        counts = len(evaluation.hypotheses), len(evaluation.references)
        if counts[0] != counts[1]:
            raise UserError(
                f"{hypotheses} has {counts[0]} lines, but {references} has {counts[1]}; "
                f"run {self.command} to write both again"
            )
        return evaluation

    def _alternatives(self) -> str:
        """Returns text for an error message that names the other evaluations of the run on the split."""
        paths = sorted(self.path("").parent.glob(f"{self.split},*=*.hyp.txt"))
        suffixes = [path.name.removesuffix(".hyp.txt").removeprefix(self.split) for path in paths]
        return "".join(
            f", or use --compare={self.run.folder}{suffix}" for suffix in suffixes if suffix != self.suffix
        )

    def read_comparable(self, references: Sequence[str]) -> Evaluation:
        """Reads the files, and checks that the evaluation can be compared with one that has `references`.

        Raises:
          UserError: a file is missing or incomplete, or the references or a metric's settings differ.
        """
        evaluation, path = self.read(), self.path(".ref.txt")
        split = f"split {self.split!r} of this run"
        if len(evaluation.references) != len(references):
            counts = f"it has {len(evaluation.references)} lines, but {split} has {len(references)}"
            raise UserError(f"{path} is from another test set: {counts}; evaluate both runs on the same data")
        for number, (line, reference) in enumerate(
            zip(evaluation.references, references, strict=True), start=1
        ):
            if line != reference:
                lines = f"line {number} is {line!r}, but {reference!r} in {split}"
                raise UserError(
                    f"{path} is from another test set: {lines}; evaluate both runs on the same data"
                )
        stored = evaluation.scores["signatures"]
        for name, signature in signatures().items():
            if METRICS[name].compared and stored.get(name) != signature:
                settings = f"{stored.get(name)} in {self.name}, but {signature} in this run"
                raise UserError(
                    f"the signature of {name} is {settings}; run {self.command} to compute the score again"
                )
        return evaluation

    def comparison_path(self, compared: "ScoreFiles") -> Path:
        """Returns the path of the file with the comparison of this evaluation and `compared`."""
        return self.path(f".compare-{compared.run.folder.resolve().name}{compared.suffix}.json")

    def compare(
        self,
        evaluation: Evaluation,
        compared: "ScoreFiles",
        compared_evaluation: Evaluation,
        sources: Sequence[str],
    ) -> dict[str, Comparison]:
        """Compares two evaluations with every metric whose field `compared` is true, and writes the result.

        Args:
          evaluation: the content of the files of this evaluation.
          compared: the files of the other evaluation.
          compared_evaluation: the content of the files of the other evaluation.
          sources: the source sentences of the split.
        """
        references = evaluation.references
        outputs = Outputs(sources, evaluation.hypotheses, references)
        compared_outputs = Outputs(sources, compared_evaluation.hypotheses, references)
        metrics = [metric for metric in METRICS.values() if metric.compared]
        comparisons = {}
        with counting(len(metrics), f"{self.split}: comparing") as progress:
            for metric in metrics:
                comparisons[metric.name] = compare(metric, outputs, compared_outputs)
                progress(len(comparisons))
        content = {
            "scope": SCOPE,
            "sentences": len(references),
            "differing": sum(map(str.__ne__, outputs.hypotheses, compared_outputs.hypotheses)),
            "metrics": {name: comparison._asdict() for name, comparison in comparisons.items()},
            "run": {key: evaluation.scores[key] for key in IDENTITY},
            "other": {
                "folder": str(compared.run.folder),
                **{key: compared_evaluation.scores[key] for key in IDENTITY},
            },
        }
        write_json(self.comparison_path(compared), content)
        return comparisons


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file. Only a line feed ends a line, unlike in `str.splitlines`."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return text.removesuffix("\n").split("\n") if text else []
