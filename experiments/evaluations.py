"""What `evaluate` leaves of a run on a split: its files, and how two such evaluations differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.progress import counting
from experiments.runs import Run, read_json, write_json, write_text
from transformer.config import UserError
from transformer.evaluation.scores import signatures
from transformer.evaluation.significance import Comparison, compare

COMPARED = ("exact_match", "bleu", "bleu_lc", "bleu_tok", "chrf")
SCOPE = "this test set only: says nothing about other seeds"
LONGEST = 240  # bytes of a file's name, where most systems allow 255 and a partial one has some more


class Outputs(NamedTuple):
    """What the files say."""

    scores: dict[str, Any]
    hypotheses: list[str]
    references: list[str]


class Evaluation(NamedTuple):
    """One evaluation and where its files are.

    Attributes:
      run: which was scored.
      split: on what.
      changes: the fields of its config that were changed for it, and their values.
    """

    run: Run
    split: str
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        """As `--compare` names it: the run's folder, and after commas what was changed."""
        return f"{self.run.folder}{self.suffix}"

    @property
    def suffix(self) -> str:
        """The changes in the order of their keys."""
        return "".join(f",{key}={value}" for key, value in sorted(self.changes.items()))

    @property
    def again(self) -> str:
        """The command that makes it."""
        command = f"python -m experiments.evaluate --workdir={self.run.folder} --split={self.split}"
        return command + self.suffix.replace(",", " --set=")

    def path(self, ending: str) -> Path:
        """One of its files.

        Raises:
          UserError: no file can be called so.
        """
        name = f"{self.split}{self.suffix}{ending}"
        if "/" in name or len(name.encode()) > LONGEST:
            raise UserError(f"no file can be called {name!r}")
        return self.run.folder / "eval" / name

    def write(self, outputs: Outputs) -> None:
        """Writes .hyp.txt, .ref.txt and then .json, each whole or not at all."""
        self.path("").parent.mkdir(exist_ok=True)
        for ending, lines in ((".hyp.txt", outputs.hypotheses), (".ref.txt", outputs.references)):
            write_text(self.path(ending), "".join(f"{line}\n" for line in lines))
        write_json(self.path(".json"), outputs.scores)

    def read(self) -> Outputs:
        """What was written.

        Raises:
          UserError: it was not, or a file is not whole.
        """
        scores, hypotheses, references = paths = [self.path(end) for end in (".json", ".hyp.txt", ".ref.txt")]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing; {self.again} writes it{self._others()}")
        outputs = Outputs(read_json(scores), lines_of(hypotheses), lines_of(references))
        if len(outputs.hypotheses) != len(outputs.references):
            counts = (
                f"{hypotheses} has {len(outputs.hypotheses)} lines, {references} {len(outputs.references)}"
            )
            raise UserError(f"{counts}; {self.again} writes both anew")
        return outputs

    def _others(self) -> str:
        """What else there is of the run on the split, in words."""
        found = sorted(self.path("").parent.glob(f"{self.split},*=*.hyp.txt"))
        names = [path.name.removesuffix(".hyp.txt").removeprefix(self.split) for path in found]
        return "".join(
            f"; there is --compare={self.run.folder}{name}" for name in names if name != self.suffix
        )

    def comparable(self, references: Sequence[str]) -> Outputs:
        """What was written, if on these references and scored as we score.

        Raises:
          UserError: it was not.
        """
        outputs, path = self.read(), self.path(".ref.txt")
        if len(outputs.references) != len(references):
            counts = f"it has {len(outputs.references)} lines, split {self.split!r} here {len(references)}"
            raise UserError(f"{path} is another test set: {counts}")
        for number, (theirs, ours) in enumerate(zip(outputs.references, references, strict=True), start=1):
            if theirs != ours:
                differ = f"line {number} is {theirs!r} there, {ours!r} here"
                raise UserError(f"{path} is another test set: {differ}")
        stored, own = outputs.scores["signatures"], signatures()
        for metric in COMPARED:
            if metric in own and stored.get(metric) != own[metric]:
                differ = (
                    f"the signature of {metric} is {stored.get(metric)} in {self.name}, {own[metric]} here"
                )
                raise UserError(f"{differ}; {self.again} scores it anew")
        return outputs

    def comparison(self, other: "Evaluation") -> Path:
        """The file that says how it differs from another one."""
        return self.path(f".compare-{other.run.folder.resolve().name}{other.suffix}.json")

    def compare(self, own: Outputs, other: "Evaluation", theirs: Outputs) -> dict[str, Comparison]:
        """Compares with another one and writes it down."""
        texts = (own.hypotheses, theirs.hypotheses, own.references)
        comparisons = {}
        with counting(len(COMPARED), f"{self.split}: comparing") as progress:
            for metric in COMPARED:
                comparisons[metric] = compare(metric, *texts)
                progress(len(comparisons))
        identity = ("checkpoints", "params_sha256", "changes")
        content = {
            "scope": SCOPE,
            "sentences": len(own.references),
            "differing": sum(map(str.__ne__, own.hypotheses, theirs.hypotheses)),
            "metrics": {metric: comparison._asdict() for metric, comparison in comparisons.items()},
            "run": {fact: own.scores[fact] for fact in identity},
            "other": {
                "folder": str(other.run.folder),
                **{fact: theirs.scores.get(fact) for fact in identity},  # older ones lack some
            },
        }
        write_json(self.comparison(other), content)
        return comparisons


def lines_of(path: Path) -> list[str]:
    """A file's lines. Only a line feed ends a line; `read_text` would know of other ends."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return text.removesuffix("\n").split("\n") if text else []
