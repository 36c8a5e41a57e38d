"""Study folders: stores the plan of a study in study.json, and reads the scores of the runs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run_folder import Run
from experiments.study.sweep import PlannedRun, Sweep
from transformer.config import UserError, difference
from transformer.files import read_json, write_json

MIN_SENTENCES = 10  # ranges of source lengths with fewer sentences are not reported


@dataclasses.dataclass(frozen=True)
class Study:
    """The scores of a study.

    Attributes:
      sweep: the plan of the study.
      scores: scores[variant][seed][split] is the content of eval/<split>.json, if that file exists.
    """

    sweep: Sweep
    scores: dict[str, dict[int, dict[str, dict[str, Any]]]]

    def values(self, variant: str, split: str, metric: str) -> list[float]:
        """Returns the scores of a metric, one per seed. Seeds without a score are left out."""
        runs = self.scores[variant]
        return [runs[seed][split][metric] for seed in sorted(runs) if metric in runs[seed].get(split, {})]

    def by_length(self, variant: str, split: str, metric: str) -> dict[int, list[float]]:
        """Returns one score per seed for each range of source lengths. The key is the upper end in tokens.

        Ranges with fewer than `MIN_SENTENCES` sentences are left out.
        """
        scores: dict[int, list[float]] = {}
        for _, splits in sorted(self.scores[variant].items()):
            for bucket in splits[split]["by_length"] if split in splits else []:
                if bucket["sentences"] >= MIN_SENTENCES and metric in bucket:
                    scores.setdefault(bucket["most"], []).append(bucket[metric])
        return dict(sorted(scores.items()))


def is_complete(run: Run, splits: Sequence[str], metrics: Sequence[str]) -> bool:
    """Returns whether a run is finished, and the last checkpoint has scores for all metrics on all splits."""
    if run.result.get("status") != "done":
        return False
    paths = [run.folder / "eval" / f"{split}.json" for split in splits]
    if not all(path.exists() for path in paths):
        return False
    return all(
        scores["checkpoints"][-1] == run.result["step"] and scores.keys() >= set(metrics)
        for scores in map(read_json, paths)
    )


def check_root(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Checks that a study can use a folder: the folder is new or holds the same study.

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
    """Writes study.json, in which `read_study` finds the run folders."""
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
            f"{root} is not a study: study.json is missing; "
            f"start a study with python -m experiments.launch --sweep=FILE --root={root}"
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
