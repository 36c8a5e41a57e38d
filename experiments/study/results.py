"""The scores of a study and the states of its runs, read from its folder."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.run_folder import Run
from experiments.score_files import ScoreFiles, is_stale
from experiments.study.statistics import Comparison, compare
from experiments.study.study_file import Trial, Tuned, read_plan, read_sweep, run_folder
from experiments.study.sweep import PlannedRun, Sweep
from transformer.config import UserError, to_dict
from transformer.json_files import seal
from transformer.tasks import task_type
from transformer.training.session import INITIAL_WEIGHTS

MIN_SENTENCES = 10  # ranges of source lengths with fewer sentences are not reported


@dataclasses.dataclass(frozen=True)
class Study:
    """The scores of a study.

    Attributes:
      sweep: the plan of the study.
      planned: the planned seeds of each variant.
      scores: scores[variant][seed][split] is the content of eval/<split>.json, if that file exists.
      diverged: the seeds of each variant whose training diverged.
      failed: the seeds of each variant whose training failed for another reason.
      tuned: the tuning of each variant; empty if the study tunes nothing.
      changes: the values that `--set` gives to all variants, by config key.
      costs: costs[variant] has "parameters" and "flops" (of the training), if they are known.
      runs: runs[variant][seed] is the run folder, if it exists.
      refused: the reason of each variant that does not apply, if the study is one task of several.
      family: the comparisons, adjusted for all tasks, if the study is one task of several; otherwise None.
    """

    sweep: Sweep
    planned: dict[str, list[int]]
    scores: dict[str, dict[int, dict[str, dict[str, Any]]]]
    diverged: dict[str, list[int]]
    failed: dict[str, list[int]]
    tuned: dict[str, Tuned]
    changes: dict[str, Any]
    costs: dict[str, dict[str, float]]
    runs: dict[str, dict[int, Run]]
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    family: dict[str, Comparison] | None = None

    @property
    def launched(self) -> list[str]:
        """The variants with at least one run folder, in the order of the sweep file."""
        return [variant for variant in self.sweep.variants if self.runs[variant]]

    def values(self, variant: str, split: str, metric: str) -> list[float]:
        """Returns the scores of a metric, one per seed; see `by_seed`."""
        return list(self.by_seed(variant, split, metric).values())

    def by_seed(self, variant: str, split: str, metric: str) -> dict[int, float]:
        """Returns the score of each seed. Seeds without a finite score are left out."""
        runs = self.scores[variant]
        scores = {seed: runs[seed].get(split, {}).get(metric) for seed in sorted(runs)}
        return {seed: score for seed, score in scores.items() if score is not None}

    def without_value(self, variant: str, split: str, metric: str) -> list[int]:
        """Returns the seeds whose score is infinite or NaN, or cannot be computed for the text."""
        runs = self.scores[variant]
        return [seed for seed in sorted(runs) if runs[seed].get(split, {}).get(metric, 0) is None]

    def num_seeds(self, variant: str) -> int:
        """Returns the number of seeds that have a score of the primary metric."""
        metric, split = self.sweep.primary
        return len(self.by_seed(variant, split, metric))

    def unfinished(self, variant: str) -> list[int]:
        """Returns the planned seeds that lack a score of the study, for any reason."""
        metrics = set(self.sweep.metrics)
        return [
            seed
            for seed in sorted(self.planned[variant])
            if not all(
                self.scores[variant].get(seed, {}).get(split, {}).keys() >= metrics
                for split in self.sweep.splits
            )
        ]

    def no_test(self, variant: str) -> str:
        """Returns the reason why a variant cannot be compared with others; empty if it can be compared."""
        metric, split = self.sweep.primary
        if seeds := self.without_value(variant, split, metric):
            count = len(seeds) + self.num_seeds(variant)
            return f"{metric} on {split} has no value for {len(seeds)} of {count} runs of {variant}"
        if not self.num_seeds(variant):
            return f"{variant} has no score of {metric} on {split}"
        sides = [self.test_sets(name, split, metric) for name in (variant, self.sweep.baseline)]
        if all(sides) and len(sides[0] | sides[1]) > 1:
            return (
                f"{variant} and {self.sweep.baseline} were scored on different data of {split}, or with "
                f"different settings of {metric}"
            )
        return ""

    def test_sets(self, variant: str, split: str, metric: str) -> set[tuple[str, str]]:
        """Returns the digests of the data of a split, with the settings of a metric, over all seeds."""
        evaluations = (splits[split] for splits in self.scores[variant].values() if split in splits)
        return {
            (scores["content"], scores.get("signatures", {}).get(metric, ""))
            for scores in evaluations
            if scores.get("content")
        }

    def ended_early(self, variant: str) -> list[int]:
        """Returns the steps of the finished runs that `train.patience` ended early."""
        runs = [run for run in self.runs[variant].values() if run.result.get("status") == "done"]
        return [
            run.result["step"]
            for run in runs
            if run.config.train.patience is not None and run.result["step"] < run.config.train.steps
        ]

    def comparisons(self) -> dict[str, Comparison]:
        """Compares variants with the baseline on the primary metric; see `statistics.compare`.

        Variants that cannot be compared are left out; see `no_test`.
        """
        if self.family is not None:
            return self.family
        scores = self.compared_scores()
        return compare(scores, self.sweep.baseline) if scores else {}

    def compared_scores(self) -> dict[str, dict[int, float]]:
        """Returns the scores that can be compared; empty if they lack those of the baseline."""
        metric, split = self.sweep.primary
        scores = {
            variant: self.by_seed(variant, split, metric)
            for variant in self.sweep.variants
            if not self.no_test(variant)
        }
        return scores if self.sweep.baseline in scores else {}

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


def is_complete(run: Run, planned: PlannedRun, splits: Sequence[str], metrics: Sequence[str]) -> bool:
    """Returns whether a run is finished, and has scores for all metrics on all splits.

    Scores count only if they are undamaged and come from the last checkpoint of this run, with the planned
    config and the current content of the data. The checkpoint itself may be missing.
    """
    try:
        result, evaluations = run.result, read_evaluations(run, splits)
    except UserError:
        return False
    if result.get("status") != "done" or result["identity"]["config"] != planned.config_hash:
        return False
    data = task_type(planned.config).present_data(planned.config)
    return (
        data in (None, result["identity"]["data"])
        and len(evaluations) == len(splits)
        and all(
            not is_stale(scores, result) and scores.keys() >= set(metrics) for scores in evaluations.values()
        )
    )


def state(run: Run, planned: PlannedRun, sweep: Sweep) -> str:
    """Returns the state of a run: done, diverged, trained, failed, stopped or new.

    A "trained" run lacks scores. A "stopped" run resumes when it is launched again.
    """
    if is_complete(run, planned, sweep.splits, sweep.metrics):
        return "done"
    if has_diverged(run, planned):
        return "diverged"
    try:
        status = run.result.get("status")
    except UserError:
        return "failed"
    return {"done": "trained", "failed": "failed", None: "new"}.get(status, "stopped")


def read_criterion(run: Run, planned: PlannedRun) -> float | None:
    """Returns the loss of the last validation; None if no training with the planned config has finished."""
    try:
        result = run.result
    except UserError:
        return None
    if result.get("status") != "done" or result["identity"]["config"] != planned.config_hash:
        return None
    return result["validation"].get(task_type(planned.config).criterion)


def has_ended(run: Run, planned: PlannedRun) -> bool:
    """Returns whether a run is trained or has diverged."""
    return read_criterion(run, planned) is not None or has_diverged(run, planned)


def has_diverged(run: Run, planned: PlannedRun) -> bool:
    """Returns whether a run diverged with the planned config; if so, it would diverge again."""
    try:
        return run.result.get("reason") == "diverged" and run.config_hash == planned.config_hash
    except UserError:
        return False


def read_evaluations(run: Run, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the scores of a run by split, for the splits that have been evaluated.

    Raises:
      UserError: a file is damaged, or does not belong to the run.
    """
    files = [ScoreFiles(run, split, {}) for split in splits]
    return {score_files.split: score_files.read_scores() for score_files in files if score_files.exists}


def read_study(root: Path) -> Study:
    """Reads a study from its folder.

    Raises:
      UserError: the folder is not a study, or its files are damaged or do not belong together.
    """
    stored = read_plan(root)
    sweep = read_sweep(root, stored)
    planned: dict[str, list[int]] = {variant: [] for variant in sweep.variants}
    failed: dict[str, list[int]] = {variant: [] for variant in sweep.variants}
    scores: dict[str, dict[int, dict[str, dict]]] = {variant: {} for variant in sweep.variants}
    diverged: dict[str, list[int]] = {variant: [] for variant in sweep.variants}
    runs: dict[str, dict[int, Run]] = {variant: {} for variant in sweep.variants}
    for run_id in stored["runs"]:
        variant, _, name = run_id.partition("/")
        run = Run(run_folder(root, run_id))
        seed_name, _, short_hash = name.partition("-")
        seed, result = int(seed_name), run.result
        planned[variant].append(seed)
        if (run.folder / "config.json").exists():
            runs[variant][seed] = run
        if result and not run.config_hash.startswith(short_hash):
            raise UserError(
                f"{run.folder} contains a run with a different config; delete the folder and launch the "
                "study again"
            )
        evaluations = read_evaluations(run, sweep.splits)
        if result.get("status") == "done":
            # Scores from before the end of the training do not count.
            evaluations = {
                split: values for split, values in evaluations.items() if not is_stale(values, result)
            }
            if evaluations:
                scores[variant][seed] = evaluations
        if result.get("status") == "failed":
            (diverged if result.get("reason") == "diverged" else failed)[variant].append(seed)
    _check_identities(runs[variant][seed] for variant, seeds in scores.items() for seed in seeds)
    tuned = {
        variant: Tuned(values["chosen"], [Trial(**trial) for trial in values["trials"]])
        for variant, values in stored["tuned"].items()
    }
    return Study(sweep, planned, scores, diverged, failed, tuned, stored["changes"], stored["costs"], runs)


def _check_identities(runs: Iterable[Run]) -> None:
    """Checks that the runs of a study can be compared.

    Raises:
      UserError: two runs with the same data settings were trained on different data, or a run began with the
        weights of another run.
    """
    first_runs: dict[str, tuple[str, Run]] = {}
    for run in runs:
        identity = run.result["identity"]
        if INITIAL_WEIGHTS in identity:
            raise UserError(
                f"{run.folder} began with the weights of another run (--init_from), but a study trains every "
                "run from the beginning; move the run elsewhere, and launch the study again"
            )
        settings, content = seal(to_dict(run.config)["data"]), identity.get("content")
        first_content, first = first_runs.setdefault(settings, (content, run))
        if content != first_content:
            raise UserError(
                f"{run.folder} and {first.folder} were trained on different data; restore the data of one "
                "of them, delete the other run, and launch the study again"
            )
