"""What a study's folder says: which runs are done, and their scores."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.launcher.sweep import PlannedRun, Sweep
from experiments.runs import Run, read_json


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


def is_complete(run: Run, splits: Sequence[str]) -> bool:
    """Whether a run is trained to its end, and that end was scored."""
    if run.result.get("status") != "done":
        return False
    scores = [run.folder / "eval" / f"{split}.json" for split in splits]
    return all(path.exists() and read_json(path)["checkpoints"][-1] == run.result["step"] for path in scores)


def write_study(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Writes study.json: what the report needs to know beyond the run folders."""
    study = {**dataclasses.asdict(sweep), "runs": [run.id for run in runs]}
    (root / "study.json").write_text(json.dumps(study, indent=2) + "\n")


def read_study(root: Path) -> Study:
    """Reads a study back from its folder alone."""
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


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan
