"""study.json, the plan of a study: checks it, writes it and reads it."""

import dataclasses
import json
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.run_folder import Run
from experiments.study.sweep import PlannedRun, Sweep
from transformer.config import ExperimentConfig, UserError, choose, declarations, difference
from transformer.evaluation.metrics import METRICS
from transformer.files import path_component, refuse_links
from transformer.json_files import check_types, read_sealed, write_sealed
from transformer.tasks import task_type

STUDY_FILE = "study.json"


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
    check_folder(root)
    if not (root / STUDY_FILE).exists():
        return
    stored = _read_file(root)
    if stored["name"] != sweep.name:
        raise UserError(f"{root} contains the study {stored['name']!r}, not {sweep.name!r}{advice}")
    stored_ids = {_variant_and_seed(run_id): run_id for run_id in stored["runs"]}
    for run in runs:
        stored_id = stored_ids.get(_variant_and_seed(run.id), run.id)
        if stored_id != run.id and (run_folder(root, stored_id) / "config.json").exists():
            differences = difference(Run(run_folder(root, stored_id)).config, run.config)
            raise UserError(
                f"{root} contains this study with different settings of {run.variant}: {differences}{advice}"
            )
    _check_settings(root, stored, sweep, runs, changes)


def check_folder(root: Path) -> None:
    """Checks that a folder is new, or may contain a study.

    Raises:
      UserError: the folder contains a run or a link, or is not a folder.
    """
    advice = "; name another --root"
    refuse_links(root)
    if (root / "config.json").exists():
        raise UserError(f"{root} is a run, not a study{advice}")
    if (root.exists() or root.is_symlink()) and not root.is_dir():
        raise UserError(f"{root} is not a folder{advice}")


def _check_settings(
    root: Path,
    stored: Mapping[str, Any],
    sweep: Sweep,
    runs: Sequence[PlannedRun],
    changes: Mapping[str, Any],
) -> None:
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
        ("--set", *(_affecting_results(values, runs) for values in (stored["changes"], changes))),
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


def _affecting_results(changes: Mapping[str, Any], runs: Sequence[PlannedRun]) -> dict[str, Any]:
    declared = declarations(ExperimentConfig)
    for run in runs:
        if (options := task_type(run.config).options_type(run.config)) is not None:
            declared |= declarations(options, "data.options.")
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
            if _variant_and_seed(run_id) not in planned or (run_folder(root, run_id) / "config.json").exists()
        ]
        values["runs"] = list(dict.fromkeys([*earlier, *values["runs"]]))
        for name in ("variants", "tuned", "costs"):
            values[name] = {**stored[name], **values[name]}
    root.mkdir(parents=True, exist_ok=True)
    write_sealed(root / STUDY_FILE, values)


def stored_costs(root: Path) -> dict[str, dict[str, float]]:
    """Returns the costs in study.json, by variant; see `Study`."""
    return _read_file(root)["costs"] if (root / STUDY_FILE).exists() else {}


def run_folders(root: Path) -> list[Path]:
    """Returns the run folders of a study that exist.

    Raises:
      UserError: the folder is not a study, or its plan is damaged.
    """
    folders = [run_folder(root, run_id) for run_id in read_plan(root)["runs"]]
    return [folder for folder in folders if folder.is_dir()]


def run_folder(root: Path, run_id: str) -> Path:
    """Returns the folder of a run, which may not exist.

    Raises:
      UserError: a part of the id is no plain file name.
    """
    variant, _, name = run_id.partition("/")
    return root / path_component(variant, "a variant") / path_component(name, "a run of the study")


def read_plan(root: Path) -> dict[str, Any]:
    """Returns the content of study.json.

    Raises:
      UserError: the folder is not a study of one config, or its plan is damaged.
    """
    check_is_study(root)
    return _read_file(root)


def check_is_study(root: Path) -> None:
    """Checks that a folder contains a study.

    Raises:
      UserError: it does not.
    """
    refuse_links(root)
    if (root / "config.json").is_file():
        raise UserError(f"{root} is a run, not a study; name the study's folder, or use experiments.evaluate")
    if not (root / STUDY_FILE).is_file():
        raise UserError(
            f"{root} is not a study: study.json is missing; "
            f"start a study with python -m experiments.launch --sweep=FILE --root={root}"
        )


def _read_file(root: Path) -> dict[str, Any]:
    """Returns the content of study.json.

    Raises:
      UserError: the file is damaged, or is not the plan of a study of one config.
    """
    if "tasks" in read_sealed(root / STUDY_FILE):
        raise UserError(f"{root} contains a study of several tasks; name another --root")
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


def read_sweep(root: Path, stored: Mapping[str, Any]) -> Sweep:
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
