"""Writes and reads the files in eval/ of a run folder, and compares two evaluations."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.progress import counting
from experiments.run_folder import Run
from transformer.config import UserError
from transformer.decoding.translator import LINE_ENDS
from transformer.evaluation.metrics import METRICS, Outputs, metrics_for, signatures
from transformer.evaluation.significance import Comparison, compare
from transformer.files import atomic_write, lock, path_component
from transformer.json_files import check_types, read_sealed, write_sealed

SCOPE = "p-values are for this test set only and say nothing about other seeds"
TEXT_FILES = (".src.txt", ".hyp.txt", ".ref.txt")  # the texts of an `Evaluation`
# Entries of `scores` that identify the evaluated weights and the test set.
IDENTITY = ("identity", "content", "checkpoints", "params_sha256", "changes", "ablated")


# The types of the values in eval/<split>.json.
SCORE_TYPES = {
    "identity": dict[str, str],
    "test_set": str,
    "changes": dict[str, Any],
    "ablated": str,
    "checkpoints": list[int],
    "params_sha256": str | None,
    "content": str | None,
    "files": dict[str, str],
    "signatures": dict[str, str],
    "by_length": list[dict[str, float | None]],
    "sentences": int | None,
    **dict.fromkeys(METRICS, float | None),
}


class Evaluation(NamedTuple):
    """The content of the files of an evaluation: the scores, and the sentences of the three texts.

    A task without translations has no texts.
    """

    scores: dict[str, Any]
    sources: Sequence[str] = ()
    hypotheses: Sequence[str] = ()
    references: Sequence[str] = ()


class ScoreFiles(NamedTuple):
    """The files of an evaluation of a run on a test set.

    Attributes:
      run: the run.
      split: the name of the split, or of the test set given as files.
      changes: new values by config field, as given in `--set` for the evaluation.
      ablated: the part of the model that is removed, as in `--ablate`; empty if the model is whole.
      is_split: whether the test set is a split of the data set; otherwise it was given as files.
    """

    run: Run
    split: str
    changes: dict[str, Any]
    ablated: str = ""
    is_split: bool = True

    @property
    def suffix(self) -> str:
        """The changes and the ablation as part of a file name: ",KEY=VALUE" for each, sorted by key."""
        ablation = {"ablate": self.ablated} if self.ablated else {}
        return "".join(f",{key}={value}" for key, value in sorted({**self.changes, **ablation}.items()))

    @property
    def name(self) -> str:
        """The name of the evaluation in `--compare`: the run folder and the changes."""
        return f"{self.run.folder}{self.suffix}"

    @property
    def command(self) -> str:
        """The command that writes the files."""
        test_set = f"--split={self.split}"
        if not self.is_split:
            test_set = f"--source=FILE --target=FILE --name={self.split}"
        command = f"python -m experiments.evaluate --workdir={self.run.folder} {test_set}"
        command += "".join(f" --set={key}={value}" for key, value in sorted(self.changes.items()))
        return command + (f" --ablate={self.ablated}" if self.ablated else "")

    def path(self, ending: str) -> Path:
        """Returns the path of the file whose name has the given ending, such as ".json".

        Raises:
          UserError: the changes cannot be part of a file name.
        """
        name = path_component(f"{self.split}{self.suffix}{ending}", "the file name of the evaluation")
        return self.run.folder / "eval" / name

    @property
    def exists(self) -> bool:
        """True if the evaluation has been written."""
        return self.path(".json").exists()

    def write(self, evaluation: Evaluation) -> Evaluation:
        """Writes .src.txt, .hyp.txt and .ref.txt, if there are texts, and then .json with their digests.

        Returns:
          The evaluation, with the test set, the changes and the ablation added to the scores.
        """
        made_from = {"test_set": self.split, "changes": self.changes, "ablated": self.ablated}
        evaluation = evaluation._replace(scores={**evaluation.scores, **made_from})
        texts = {
            ending: "".join(f"{line.translate(LINE_ENDS)}\n" for line in lines)
            for ending, lines in zip(TEXT_FILES, evaluation[1:], strict=True)
            if evaluation.references
        }
        with lock(self.run.folder / "eval", wait=True):
            for ending, text in texts.items():
                atomic_write(self.path(ending), text)
            digests = {ending: text_digest(text.encode()) for ending, text in texts.items()}
            write_sealed(self.path(".json"), {**evaluation.scores, "files": digests})
        return evaluation

    def read(self) -> Evaluation:
        """Reads the files.

        Raises:
          UserError: a file is missing or damaged, is of another evaluation, or is of an earlier checkpoint.
        """
        paths = {ending: self.path(ending) for ending in (".json", *TEXT_FILES)}
        for path in paths.values():
            if not path.is_file():
                raise UserError(f"{path} is missing; run {self.command}{self._alternatives()}")
        scores = self.read_scores()
        del paths[".json"]
        if is_stale(scores, self.run.result):
            raise UserError(
                f"{self.path('.json')} has the scores of checkpoint {scores['checkpoints'][-1]}, but "
                f"{self.run.folder} has since been trained to step {self.run.result['step']}; "
                f"run {self.command}"
            )
        for ending, path in paths.items():
            if text_digest(path.read_bytes()) != scores["files"][ending]:
                raise UserError(f"{path} was damaged or edited; run {self.command} to write it again")
        return Evaluation(scores, *map(read_lines, paths.values()))

    def read_scores(self) -> dict[str, Any]:
        """Reads only the scores. They may be of an earlier checkpoint; see `is_stale`.

        Raises:
          UserError: the file is damaged, or contains another evaluation or that of another run.
        """
        scores = read_sealed(self.path(".json"), SCORE_TYPES)
        for bucket in scores["by_length"]:
            check_types(self.path(".json"), bucket, {"most": int, "sentences": int})
        identity = self.run.result.get("identity", {"config": self.run.config_hash})
        is_of_this_run = scores["identity"].items() >= identity.items()
        made_from = tuple(scores.get(key) for key in ("test_set", "changes", "ablated"))
        if not is_of_this_run or made_from != (self.split, self.changes, self.ablated):
            raise UserError(f"{self.path('.json')} contains another evaluation; run {self.command}")
        return scores

    def _alternatives(self) -> str:
        """Returns text for an error message that names the other evaluations of the run on the split."""
        paths = sorted(self.path("").parent.glob(f"{self.split},*=*.hyp.txt"))
        suffixes = [path.name.removesuffix(".hyp.txt").removeprefix(self.split) for path in paths]
        return "".join(
            f", or use --compare={self.run.folder}{suffix}" for suffix in suffixes if suffix != self.suffix
        )

    def read_comparable(self, sources: Sequence[str], references: Sequence[str]) -> Evaluation:
        """Reads the files, and checks that the evaluation can be compared with one on the given test set.

        Raises:
          UserError: `read` raises an error, or the test set or the signature of a metric differs.
        """
        evaluation = self.read()
        self._check_lines(".ref.txt", evaluation.references, references)
        self._check_lines(".src.txt", evaluation.sources, sources)
        stored = evaluation.scores["signatures"]
        for name, signature in signatures(self.run.config.data.target).items():
            if METRICS[name].compared and stored.get(name) != signature:
                raise UserError(
                    f"{name} of {self.name} was computed with signature {stored.get(name)}, but the current "
                    f"signature is {signature}; run {self.command} to compute it again"
                )
        return evaluation

    def _check_lines(self, ending: str, stored: Sequence[str], lines: Sequence[str]) -> None:
        """Checks that the stored lines are the lines of the test set.

        Raises:
          UserError: a line differs.
        """
        expected, test_set = [line.translate(LINE_ENDS) for line in lines], f"{self.split!r} of this run"
        if list(stored) != expected:
            if len(stored) != len(expected):
                problem = f"it has {len(stored)} lines, but {test_set} has {len(expected)}"
            else:
                number = next(i for i, line in enumerate(stored) if line != expected[i])
                problem = f"line {number + 1} is {stored[number]!r}, but {expected[number]!r} in {test_set}"
            raise UserError(
                f"{self.path(ending)} is from another test set: {problem}; "
                "evaluate both runs on the same data"
            )

    def comparison_path(self, compared: "ScoreFiles") -> Path:
        """Returns the path of the file with the comparison of this evaluation and `compared`."""
        return self.path(f".compare-{compared.run.folder.resolve().name}{compared.suffix}.json")

    def compare(
        self,
        evaluation: Evaluation,
        compared: "ScoreFiles",
        compared_evaluation: Evaluation,
    ) -> dict[str, Comparison]:
        """Compares two evaluations with every metric whose field `compared` is true, and writes the result.

        Args:
          evaluation: the content of the files of this evaluation.
          compared: the files of the other evaluation.
          compared_evaluation: the content of the files of the other evaluation.
        """
        sources, references = evaluation.sources, evaluation.references
        language = self.run.config.data.target
        outputs = Outputs(sources, evaluation.hypotheses, references, language)
        compared_outputs = Outputs(sources, compared_evaluation.hypotheses, references, language)
        metrics = [metric for metric in metrics_for(language).values() if metric.compared]
        comparisons = {}
        with counting(len(metrics), f"{self.split}: comparing", "metrics") as progress:
            for metric in metrics:
                comparisons[metric.name] = compare(metric, outputs, compared_outputs)
                progress(len(comparisons))
        content = {
            "scope": SCOPE,
            "sentences": len(references),
            "differing": sum(map(str.__ne__, outputs.hypotheses, compared_outputs.hypotheses)),
            "metrics": {name: comparison._asdict() for name, comparison in comparisons.items()},
            "run": {key: evaluation.scores.get(key) for key in IDENTITY},
            "other": {
                "folder": str(compared.run.folder),
                **{key: compared_evaluation.scores.get(key) for key in IDENTITY},
            },
        }
        write_sealed(self.comparison_path(compared), content)
        return comparisons


def is_stale(scores: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Returns whether the run was trained further after the scores were computed.

    Args:
      scores: the content of eval/<split>.json.
      result: the content of result.json. Until its status is "done", the function returns False.
    """
    return result.get("status") == "done" and scores["checkpoints"][-1:] != [result["step"]]


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file. Only a line feed ends a line, unlike in `str.splitlines`."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return text.removesuffix("\n").split("\n") if text else []


def text_digest(content: bytes) -> str:
    """Returns the SHA-256 digest of the content of a file."""
    return hashlib.sha256(content).hexdigest()
