"""Groups of runs that one program trains; see `transformer.training.vectorized`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from experiments.run_folder import Run
from experiments.study.queue import Job, command
from experiments.study.results import has_ended
from experiments.study.sweep import PlannedRun
from transformer.training.vectorized import group_key


def make_groups(root: Path, runs: Sequence[PlannedRun], size: int) -> list[list[PlannedRun]]:
    """Returns groups of 2 to `size` runs that are not trained yet and that one program can train."""
    alike: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in runs:
        if not has_ended(Run(root / run.path), run):
            alike[group_key(run.config)].append(run)
    groups = [same[i : i + size] for same in alike.values() for i in range(0, len(same), size)]
    return [group for group in groups if len(group) > 1]


def group_job(root: Path, group: Sequence[PlannedRun]) -> Job:
    """Returns a job that trains a group. Each run is evaluated by a job of its own."""
    first, *more = [root / run.path for run in group]

    def begin() -> None:
        for run in group:
            Run(root / run.path).begin(run.config)
        for folder in more:
            with (folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"trained together with {first}, whose log.txt has the output\n")

    return Job(
        name=f"{group[0].path} and {len(more)} more",
        folder=first,
        commands=[command("vectorize", *(f"--workdir={folder}" for folder in (first, *more)))],
        begin=begin,
        is_done=lambda: all(has_ended(Run(root / run.path), run) for run in group),
        more_folders=more,
    )
