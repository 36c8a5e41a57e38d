"""What a study's folder says: which runs are done, and their scores."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.launcher.sweep import PlannedRun, Sweep
from experiments.runs import Run, difference, read_json
from transformer.config import UserError


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's scores.

    Attributes:
      sweep: what was asked.
      scores: scores[variant][seed][split] is the content of eval/<split>.json; only what there is.
    """

    sweep: Sweep
    scores: dict[str, dict[int, dict[str, dict]]]

    def values(self, variant: str, split: str, metric: str) -> list[float]:
        """One number a seed."""
        runs = self.scores[variant]
        return [runs[seed][split][metric] for seed in sorted(runs) if split in runs[seed]]

    def by_length(self, variant: str, split: str, metric: str) -> dict[int, list[float]]:
        """One number a seed for each range of source lengths that has 10 sentences, by its upper end."""
        found: dict[int, list[float]] = {}
        for _, splits in sorted(self.scores[variant].items()):
            # A run that was scored before there were ranges has none.
            for one in splits.get(split, {}).get("by_length", []):
                if one["sentences"] >= 10:
                    found.setdefault(one["most"], []).append(one[metric])
        return dict(sorted(found.items()))


def is_complete(run: Run, splits: Sequence[str]) -> bool:
    """Whether a run is trained to its end, and that end was scored."""
    if run.result.get("status") != "done":
        return False
    scores = [run.folder / "eval" / f"{split}.json" for split in splits]
    return all(path.exists() and read_json(path)["checkpoints"][-1] == run.result["step"] for path in scores)


def check_root(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Makes sure that a study's folder is its own; the same study with more variants or seeds may go on.

    Raises:
      UserError: the folder holds a run, or a study of another name or with other settings, which are named.
    """
    elsewhere = "; name another --root"
    if (root / "config.json").exists():
        raise UserError(f"{root} is a run, not a study{elsewhere}")
    if not (root / "study.json").exists():
        return
    stored = read_json(root / "study.json")
    if stored["name"] != sweep.name:
        raise UserError(f"{root} holds the study {stored['name']!r}, not {sweep.name!r}{elsewhere}")
    there = {run_id.rpartition("-")[0]: run_id for run_id in stored["runs"]}
    for run in runs:
        old = there.get(run.id.rpartition("-")[0], run.id)
        if old != run.id:
            what = f"{root} holds this study with other settings"
            if (root / old / "config.json").exists():
                what += f": {difference(Run(root / old).config, run.config)}"
            raise UserError(what + elsewhere)


def write_study(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Writes study.json: what the report needs to know beyond the run folders."""
    study = {**dataclasses.asdict(sweep), "runs": [run.id for run in runs]}
    (root / "study.json").write_text(json.dumps(study, indent=2) + "\n")


def read_study(root: Path) -> Study:
    """Reads a study back from its folder alone.

    Raises:
      UserError: it is no study's folder.
    """
    if not (root / "study.json").is_file():
        raise UserError(f"{root} is not a study: it has no study.json")
    stored = read_json(root / "study.json")
    sweep = Sweep(**{field.name: stored[field.name] for field in dataclasses.fields(Sweep)})
    scores: dict[str, dict[int, dict[str, dict]]] = {variant: {} for variant in sweep.variants}
    for run_id in stored["runs"]:
        variant, _, name = run_id.partition("/")
        found = {}
        for split in sweep.splits:
            path = root / run_id / "eval" / f"{split}.json"
            if path.exists():
                found[split] = read_json(path)
        if found:
            scores[variant][int(name.partition("-")[0])] = found
    return Study(sweep, scores)
