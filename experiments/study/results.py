"""Study folders: stores the plan of a study in study.json, and reads the scores of the runs."""

import dataclasses
import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.run_folder import Run
from experiments.score_files import ScoreFiles, is_stale
from experiments.study.statistics import Comparison, compare
from experiments.study.sweep import PlannedRun, Sweep
from transformer.config import ExperimentConfig, UserError, choose, declarations, difference, to_dict
from transformer.data.builders import present_name
from transformer.evaluation.metrics import METRICS
from transformer.files import path_component, refuse_links
from transformer.json_files import check_types, read_sealed, seal, write_sealed
from transformer.tasks import task_type
from transformer.training.loop import INITIAL_WEIGHTS

STUDY_FILE = "study.json"
MIN_SENTENCES = 10  # ranges of source lengths with fewer sentences are not reported


class Trial(NamedTuple):
    """A run that tried values of hyperparameters for a variant.

    Attributes:
      values: the values, by config key.
      criterion: the loss of the last validation; None if training diverged.
    """

    values: dict[str, Any]
    criterion: float | None


class Tuned(NamedTuple):
    """The tuning of a variant: the chosen values, and all trials."""

    chosen: dict[str, Any]
    trials: list[Trial]


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

    def not_finite(self, variant: str, split: str, metric: str) -> list[int]:
        """Returns the seeds whose score is infinite or NaN, such as an infinite perplexity."""
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
        if infinite := self.not_finite(variant, split, metric):
            count = len(infinite) + self.num_seeds(variant)
            return f"{metric} on {split} is not finite for {len(infinite)} of {count} runs of {variant}"
        if not self.num_seeds(variant):
            return f"{variant} has no score of {metric} on {split}"
        sides = [self.test_sets(name, split, metric) for name in (variant, self.sweep.baseline)]
        if all(sides) and len(sides[0] | sides[1]) > 1:
            return (
                f"{variant} and {self.sweep.baseline} were scored on different texts of {split}, or with "
                f"different settings of {metric}"
            )
        return ""

    def test_sets(self, variant: str, split: str, metric: str) -> set[tuple[str, str]]:
        """Returns the digests of the texts of a split, with the settings of a metric, over all seeds."""
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
        metric, split = self.sweep.primary
        scores = {
            variant: self.by_seed(variant, split, metric)
            for variant in self.sweep.variants
            if not self.no_test(variant)
        }
        return compare(scores, self.sweep.baseline) if self.sweep.baseline in scores else {}

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
    return (
        result.get("status") == "done"
        and result["identity"]["config"] == planned.config_hash
        and result["identity"]["data"] == (present_name(planned.config.data) or result["identity"]["data"])
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


def trial_has_ended(run: Run, planned: PlannedRun) -> bool:
    """Returns whether a trial is trained or has diverged."""
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


def check_root(root: Path, sweep: Sweep, runs: Sequence[PlannedRun], changes: Mapping[str, Any]) -> None:
    """Checks that a study can use a folder: the folder is new, or contains the same study.

    Settings may differ from those of an earlier launch only if no run has begun.

    Args:
      root: the folder of the study.
      sweep: the plan.
      runs: the runs of the plan, as far as they are known before the tuning.
      changes: the values that `--set` gives to all variants, by config key.

    Raises:
      UserError: the folder contains a run, another study, or this study with different settings.
    """
    advice = "; name another --root"
    refuse_links(root)
    if (root / "config.json").exists():
        raise UserError(f"{root} is a run, not a study{advice}")
    if (root.exists() or root.is_symlink()) and not root.is_dir():
        raise UserError(f"{root} is not a folder{advice}")
    if not (root / STUDY_FILE).exists():
        return
    stored = _read_file(root)
    if stored["name"] != sweep.name:
        raise UserError(f"{root} contains the study {stored['name']!r}, not {sweep.name!r}{advice}")
    stored_ids = {_variant_and_seed(run_id): run_id for run_id in stored["runs"]}
    for run in runs:
        stored_id = stored_ids.get(_variant_and_seed(run.id), run.id)
        if stored_id != run.id and (_run_folder(root, stored_id) / "config.json").exists():
            differences = difference(Run(_run_folder(root, stored_id)).config, run.config)
            raise UserError(
                f"{root} contains this study with different settings of {run.variant}: {differences}{advice}"
            )
    _check_settings(root, stored, sweep, changes)


def _check_settings(root: Path, stored: Mapping[str, Any], sweep: Sweep, changes: Mapping[str, Any]) -> None:
    """Checks that the settings of a study whose runs have begun are those in study.json.

    Raises:
      UserError: a setting differs.
    """
    begun = [name for name in stored["variants"] if _has_begun(root / path_component(name, "a variant"))]
    if not begun:
        return
    compared = [
        ("CONFIG", stored["config"], sweep.config),
        ("EQUAL", stored["equal"], sweep.equal),
        ("TUNE", stored["tune"], sweep.tune),
        ("--set", *map(_affecting_results, (stored["changes"], changes))),
        *[
            (f"variant {name}", stored["variants"][name], sweep.variants[name])
            for name in begun
            if name in sweep.variants
        ],
    ]
    for name, earlier, current in compared:
        if earlier != json.loads(json.dumps(current)):
            raise UserError(
                f"{root} contains this study with different settings: {name} is {earlier!r} there, "
                f"{current!r} here; name another --root"
            )


def _has_begun(folder: Path) -> bool:
    """Returns whether the folder of a variant has a run that has begun."""
    return any(folder.glob("*/config.json"))


def _variant_and_seed(run_id: str) -> str:
    """Returns the id of a run without the digest of its config."""
    return run_id.rpartition("-")[0]


def _affecting_results(changes: Mapping[str, Any]) -> dict[str, Any]:
    declared = declarations(ExperimentConfig)
    return {
        key: value for key, value in changes.items() if key not in declared or declared[key].affects_result
    }


def write_study(
    root: Path,
    sweep: Sweep,
    runs: Sequence[PlannedRun],
    tuned: Mapping[str, Tuned] | None = None,
    changes: Mapping[str, Any] | None = None,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Writes study.json, which lists the run folders for `read_study`. Earlier runs and variants stay in it.

    Args:
      root: the folder of the study.
      sweep: the plan.
      runs: the runs of the plan.
      tuned: the tuning of each variant.
      changes: the values that `--set` gives to all variants, by config key.
      costs: "parameters" and "flops" of variants; see `Study`.
    """
    values: dict[str, Any] = dataclasses.asdict(sweep) | {
        "runs": [run.id for run in runs],
        "tuned": {
            variant: {"chosen": chosen, "trials": [trial._asdict() for trial in trials]}
            for variant, (chosen, trials) in (tuned or {}).items()
        },
        "changes": dict(changes or {}),
        "costs": dict(costs or {}),
    }
    if (root / STUDY_FILE).exists():
        stored = _read_file(root)
        planned = {_variant_and_seed(run.id) for run in runs}
        earlier = [
            run_id
            for run_id in stored["runs"]
            if _variant_and_seed(run_id) not in planned
            or (_run_folder(root, run_id) / "config.json").exists()
        ]
        values["runs"] = list(dict.fromkeys([*earlier, *values["runs"]]))
        for name in ("variants", "tuned", "costs"):
            values[name] = {**stored[name], **values[name]}
    write_sealed(root / STUDY_FILE, values)


def stored_costs(root: Path) -> dict[str, dict[str, float]]:
    """Returns the costs in study.json, by variant; see `Study`."""
    return _read_file(root)["costs"] if (root / STUDY_FILE).exists() else {}


def read_study(root: Path) -> Study:
    """Reads a study from its folder.

    Raises:
      UserError: the folder is not a study, or its files are damaged or do not belong together.
    """
    stored = _read_plan(root)
    sweep = _read_sweep(root, stored)
    planned: dict[str, list[int]] = {variant: [] for variant in sweep.variants}
    failed: dict[str, list[int]] = {variant: [] for variant in sweep.variants}
    scores: dict[str, dict[int, dict[str, dict]]] = {variant: {} for variant in sweep.variants}
    diverged: dict[str, list[int]] = {variant: [] for variant in sweep.variants}
    runs: dict[str, dict[int, Run]] = {variant: {} for variant in sweep.variants}
    for run_id in stored["runs"]:
        variant, _, name = run_id.partition("/")
        run = Run(_run_folder(root, run_id))
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


def run_folders(root: Path) -> list[Path]:
    """Returns the run folders of a study that exist.

    Raises:
      UserError: the folder is not a study, or its plan is damaged.
    """
    folders = [_run_folder(root, run_id) for run_id in _read_plan(root)["runs"]]
    return [folder for folder in folders if folder.is_dir()]


def _run_folder(root: Path, run_id: str) -> Path:
    variant, _, name = run_id.partition("/")
    return root / path_component(variant, "a variant") / path_component(name, "a run of the study")


def _read_plan(root: Path) -> dict[str, Any]:
    """Returns the content of study.json.

    Raises:
      UserError: the folder is not a study, or its plan is damaged.
    """
    refuse_links(root)
    if (root / "config.json").is_file():
        raise UserError(f"{root} is a run, not a study; name the study's folder, or use experiments.evaluate")
    if not (root / STUDY_FILE).is_file():
        raise UserError(
            f"{root} is not a study: study.json is missing; "
            f"start a study with python -m experiments.launch --sweep=FILE --root={root}"
        )
    return _read_file(root)


def _read_file(root: Path) -> dict[str, Any]:
    """Returns the content of study.json.

    Raises:
      UserError: the file is damaged, or is not the plan of a study.
    """
    types = typing.get_type_hints(Sweep) | {
        "runs": list[str],
        "tuned": dict[str, dict[str, Any]],
        "changes": dict[str, Any],
        "costs": dict[str, dict[str, float]],
    }
    stored = read_sealed(root / STUDY_FILE, types)
    for tuned in stored["tuned"].values():
        check_types(root / STUDY_FILE, tuned, {"chosen": dict[str, Any], "trials": list[dict[str, Any]]})
        for trial in tuned["trials"]:
            check_types(root / STUDY_FILE, trial, typing.get_type_hints(Trial))
    return stored


def _read_sweep(root: Path, stored: Mapping[str, Any]) -> Sweep:
    """Returns the plan in study.json, after a check of all names.

    Raises:
      UserError: the study has no split or no metric, or a run of another study, or the name of a variant, a
        split or a metric is invalid.
    """
    for kind, names in (("variant", stored["variants"]), ("split", stored["splits"])):
        for name in names:
            path_component(name, f"the name of a {kind} in {root / STUDY_FILE}")
    for metric in (*stored["metrics"], stored["primary"][0]):
        choose(METRICS, metric, f"metric in {root / STUDY_FILE}")
    choose(stored["variants"], stored["baseline"], f"baseline in {root / STUDY_FILE}")
    for name in ("splits", "metrics"):
        if not stored[name]:
            raise UserError(f"{root / STUDY_FILE} names no {name}; launch the study again")
    for run_id in stored["runs"]:
        variant, _, name = run_id.partition("/")
        if variant not in stored["variants"] or not re.fullmatch(r"\d+-[0-9a-f]+", name):
            raise UserError(
                f"{root / STUDY_FILE} names {run_id!r}, which is not a run of this study; "
                "restore it or delete it"
            )
    return Sweep(**{field.name: stored.get(field.name) for field in dataclasses.fields(Sweep)})


def _check_identities(runs: Iterable[Run]) -> None:
    """Checks that the runs of a study can be compared.

    Raises:
      UserError: two runs with the same data settings were trained on different texts, or a run began with the
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
                f"{run.folder} and {first.folder} were trained on different texts; restore the text of one "
                "of them, delete the other run, and launch the study again"
            )
