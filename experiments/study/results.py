"""Study folders: the plan in study.json, completed runs, and their scores."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run_folder import Run
from experiments.study.sweep import PlannedRun, Sweep
from transformer.config import UserError, difference
from transformer.files import read_json, write_json

MIN_SENTENCES = 10  # in a range of source lengths that is reported


@dataclasses.dataclass(frozen=True)
class Study:
    """The scores of a study.

    Attributes:
      sweep: the plan.
      scores: scores[variant][seed][split] is the content of eval/<split>.json; missing ones are left out.
    """

    sweep: Sweep
    scores: dict[str, dict[int, dict[str, dict[str, Any]]]]

    def values(self, variant: str, split: str, metric: str) -> list[float]:
        """Returns one score per seed."""
        runs = self.scores[variant]
        return [runs[seed][split][metric] for seed in sorted(runs) if split in runs[seed]]

    def by_length(self, variant: str, split: str, metric: str) -> dict[int, list[float]]:
        """Returns one score per seed for each range of source lengths, by its upper end in tokens.

        Ranges with fewer than `MIN_SENTENCES` sentences are left out.
        """
        scores: dict[int, list[float]] = {}
        for _, splits in sorted(self.scores[variant].items()):
            for bucket in splits[split]["by_length"] if split in splits else []:
                if bucket["sentences"] >= MIN_SENTENCES:
                    scores.setdefault(bucket["most"], []).append(bucket[metric])
        return dict(sorted(scores.items()))


def is_complete(run: Run, splits: Sequence[str]) -> bool:
    """Returns whether a run is trained to its end and its last checkpoint was evaluated on all splits."""
    if run.result.get("status") != "done":
        return False
    scores = [run.folder / "eval" / f"{split}.json" for split in splits]
    return all(path.exists() and read_json(path)["checkpoints"][-1] == run.result["step"] for path in scores)


def check_root(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Checks that a folder may hold a study: it is new, or holds the same study, maybe with fewer runs.

    Raises:
      UserError: the folder holds a run, another study, or this study with other settings.
    """
    advice = "; name another --root"
    if (root / "config.json").exists():
        raise UserError(f"{root} is a run, not a study{advice}")
    if not (root / "study.json").exists():
        return
    stored = read_json(root / "study.json")
    if stored["name"] != sweep.name:
        raise UserError(f"{root} holds the study {stored['name']!r}, not {sweep.name!r}{advice}")
    stored_ids = {run_id.rpartition("-")[0]: run_id for run_id in stored["runs"]}
    for run in runs:
        stored_id = stored_ids.get(run.id.rpartition("-")[0], run.id)
        if stored_id != run.id:
            message = f"{root} holds this study with other settings"
            if (root / stored_id / "config.json").exists():
                message += f": {difference(Run(root / stored_id).config, run.config)}"
            raise UserError(message + advice)


def write_study(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Writes study.json, from which `read_study` finds the run folders."""
    write_json(root / "study.json", {**dataclasses.asdict(sweep), "runs": [run.id for run in runs]})


def read_study(root: Path) -> Study:
    """Reads a study from its folder.

    Raises:
      UserError: the folder is not a study.
    """
    if (root / "config.json").is_file():
        raise UserError(f"{root} is a run, not a study; name the study's folder, or use experiments.evaluate")
    if not (root / "study.json").is_file():
        raise UserError(
            f"{root} is not a study: it has no study.json; experiments.launch --sweep=FILE starts one"
        )
    stored = read_json(root / "study.json")
    sweep = Sweep(**{field.name: stored[field.name] for field in dataclasses.fields(Sweep)})
    scores: dict[str, dict[int, dict[str, dict]]] = {variant: {} for variant in sweep.variants}
    for run_id in stored["runs"]:
        variant, _, name = run_id.partition("/")
        paths = {split: root / run_id / "eval" / f"{split}.json" for split in sweep.splits}
        splits = {split: read_json(path) for split, path in paths.items() if path.exists()}
        if splits:
            scores[variant][int(name.partition("-")[0])] = splits
    return Study(sweep, scores)
