"""Reads sweep files, such as the files in configs/sweeps."""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.config_files import load_module
from experiments.study.equal import ADJUSTED_FIELD
from experiments.study.sweep import Sweep
from transformer.config import UserError, choose
from transformer.evaluation.metrics import METRICS
from transformer.files import path_component

NAMES = (
    "CONFIG",
    "CONFIGS",
    "VARIANTS",
    "GRID",
    "BASELINE",
    "SPLITS",
    "METRICS",
    "PRIMARY",
    "TUNE",
    "EQUAL",
    "PUBLISHED",
)
# Names whose values are given for each task in a file with CONFIGS.
BY_TASK = ("SPLITS", "METRICS", "PRIMARY")
# Names in the folder of a study, beside the folders of the variants.
RESERVED = ("config.json", "report", "slurm", "study.json")
# Names in report/ of a study of several tasks, beside the folders of the tasks.
REPORT_FILES = ("report.html", "table.csv", "table.md", "table.tex")
# What TUNE may try in a study with EQUAL: fields that do not change the cost of a step.
COST_FREE = ("optimizer.", "model.dropout_rate", "train.label_smoothing", "train.accumulation")


def load_sweep(name: str) -> Sweep:
    """Reads a sweep file with one config; see `load_sweeps`.

    Raises:
      UserError: the file has several configs; see also `load_sweeps`.
    """
    sweeps = load_sweeps(name)
    if list(sweeps) != [""]:
        raise UserError(
            f"{name.partition(':')[0]} defines CONFIGS; this command needs a sweep file that defines CONFIG"
        )
    return sweeps[""]


def load_sweeps(name: str) -> dict[str, Sweep]:
    """Reads a sweep file, and checks all that can be checked without the configs.

    Args:
      name: path of the file; a colon and arguments for the configs may follow, as in
        `configs/sweeps/positions.py:smoke`.

    Returns:
      The study of each task, by the name of the task. If the file has only one config, the name is empty.

    Raises:
      UserError: the file cannot be executed, a definition is missing, or a definition is wrong.
    """
    path, _, argument = name.partition(":")
    module = load_module(path, "sweep")
    if hasattr(module, "get_config"):
        raise UserError(
            f"{path} is a config file, not a sweep file; name it as CONFIG in a sweep file, or use "
            "experiments.train"
        )
    _check_names(module, path)
    if not hasattr(module, "CONFIGS"):
        return {"": _read_sweep(_Reader(vars(module), path), Path(path).stem, argument)}
    return {
        task: _read_sweep(
            _Reader(definitions, f"{path} (task {task})"), f"{Path(path).stem}/{task}", argument
        )
        for task, definitions in _split_by_task(vars(module), path).items()
    }


def _read_sweep(read: "_Reader", name: str, argument: str) -> Sweep:
    config = read.text("CONFIG")
    if argument:
        config += f"{',' if ':' in config else ':'}{argument}"
    metrics, splits = read.texts("METRICS"), read.texts("SPLITS")
    for metric in metrics:
        choose(METRICS, metric, f"an entry of METRICS in {read.path}")
    for split in splits:
        path_component(split, f"an entry of SPLITS in {read.path}")
    variants = read.variants()
    baseline = read.text("BASELINE", next(iter(variants)))
    choose(variants, baseline, f"BASELINE in {read.path}")
    tune, equal = read.values("TUNE"), read.text("EQUAL", "") or None
    _check_tuned(tune, equal, variants, read.path)
    return Sweep(
        name=name,
        question=read.question(),
        config=config,
        variants=variants,
        baseline=baseline,
        splits=splits,
        metrics=metrics,
        primary=read.primary(metrics, splits),
        tune=tune,
        equal=equal,
        published=read.published(variants),
    )


def _check_tuned(
    tune: Mapping[str, Any], equal: str | None, variants: Mapping[str, Mapping[str, Any]], path: str
) -> None:
    """Checks that TUNE, EQUAL and the variants set different fields."""
    if varied := [key for key in tune if any(key in changes for changes in variants.values())]:
        raise UserError(
            f"TUNE in {path} tries {varied[0]}, which a variant also sets; remove it from TUNE or from "
            "the variant"
        )
    if not equal:
        return
    choose(ADJUSTED_FIELD, equal, f"EQUAL in {path}")
    field = ADJUSTED_FIELD[equal]
    for name, changes in variants.items():
        if field in {**changes, **tune}:
            raise UserError(
                f"EQUAL in {path} computes {field}, which variant {name} or TUNE also sets; leave {field} out"
            )
    if costly := [key for key in tune if not key.startswith(COST_FREE)]:
        raise UserError(
            f"TUNE in {path} tries {costly[0]}, which may change the costs that EQUAL makes equal; "
            "remove it from TUNE, or leave EQUAL out"
        )


def _check_names(module: ModuleType, path: str) -> None:
    """Checks that required names are defined, and that no name is misspelt."""
    for name in vars(module):
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.8)
        if name.isupper() and near and name not in NAMES:
            raise UserError(f"sweep file {path} defines {name}; did you mean {near[0]}?")
    has_tasks = hasattr(module, "CONFIGS")
    for name in ("CONFIGS", *BY_TASK) if has_tasks else ("CONFIG", "SPLITS", "METRICS"):
        if not hasattr(module, name):
            example = "everywhere" if has_tasks else "positions"
            raise UserError(
                f"sweep file {path} does not define {name}; define it as in configs/sweeps/{example}.py"
            )
    for name in ("CONFIG", "PUBLISHED") if has_tasks else ():
        if hasattr(module, name):
            raise UserError(f"sweep file {path} defines CONFIGS and {name}; remove one of them")
    if not hasattr(module, "VARIANTS") and not hasattr(module, "GRID"):
        raise UserError(
            f"sweep file {path} defines neither VARIANTS nor GRID; define one as in "
            "configs/sweeps/positions.py"
        )


def _split_by_task(definitions: Mapping[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """Returns the definitions of each task, as a sweep file with one config would have them."""
    configs = definitions["CONFIGS"]
    if not isinstance(configs, Mapping) or not configs or not all(isinstance(task, str) for task in configs):
        raise UserError(
            f"CONFIGS in {path} is {configs!r}; it must map the name of each task to a config file"
        )
    for task in configs:
        path_component(task, f"the name of a task in {path}")
        if ":" in task or "=" in task:
            raise UserError(f"CONFIGS in {path} has the task {task!r}; its name must not have ':' or '='")
        if task in (*RESERVED, *REPORT_FILES):
            raise UserError(f"CONFIGS in {path}: a study has a file or folder of the name {task}; rename it")
    for name in BY_TASK:
        values = definitions[name]
        if not isinstance(values, Mapping) or values.keys() != configs.keys():
            raise UserError(
                f"{name} in {path} is {values!r}; it must map each task in CONFIGS to its value: "
                f"{', '.join(configs)}"
            )
    return {
        task: {**definitions, "CONFIG": config, **{name: definitions[name][task] for name in BY_TASK}}
        for task, config in configs.items()
    }


class _Reader:
    """Reads the definitions of a sweep file, and refuses values of a wrong type."""

    def __init__(self, definitions: Mapping[str, Any], path: str):
        """Reads `definitions`; `path` names their file in error messages."""
        self._definitions, self.path = definitions, path

    def _error(self, name: str, rule: str) -> UserError:
        return UserError(f"{name} in {self.path} is {self._definitions[name]!r}; {rule}")

    def question(self) -> str:
        return (self._definitions.get("__doc__") or "").strip()

    def text(self, name: str, default: str | None = None) -> str:
        value = self._definitions.get(name, default)
        if not isinstance(value, str):
            raise self._error(name, "it must be a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._definitions.get(name, ())
        if isinstance(value, str):
            raise self._error(name, f"it must be a tuple: ({value!r},)")
        if not isinstance(value, tuple | list) or not value or not all(isinstance(x, str) for x in value):
            raise self._error(name, "it must be a tuple of strings with at least one entry")
        if len(set(value)) < len(value):
            raise self._error(name, "an entry is repeated; name each once")
        return tuple(value)

    def values(self, name: str) -> dict[str, list[Any]]:
        """Reads a mapping from each config key to the values to try."""
        values_by_key = self._definitions.get(name, {})
        if not isinstance(values_by_key, Mapping):
            raise self._error(name, "it must map config keys to the values to try")
        for key, values in values_by_key.items():
            if not isinstance(values, tuple | list) or not values:
                raise self._error(name, f"the values of {key} must be a tuple with at least one entry")
            if any(value in values[:number] for number, value in enumerate(values)):
                raise self._error(name, f"a value of {key} is repeated; name each once")
            self._check_key(name, key)
        return {key: list(values) for key, values in values_by_key.items()}

    def variants(self) -> dict[str, dict[str, Any]]:
        named = self._definitions.get("VARIANTS", {})
        if not isinstance(named, Mapping) or not all(isinstance(value, Mapping) for value in named.values()):
            raise self._error("VARIANTS", "it must map the name of each variant to its changes")
        grid = self.values("GRID")
        variants = {name: dict(changes) for name, changes in named.items()}
        for values in itertools.product(*grid.values()) if grid else ():
            name = ",".join(map(_value_name, grid, values))
            if name in variants:
                raise self._error("GRID", f"a variant named {name} exists already; rename one of the two")
            variants[name] = dict(zip(grid, values, strict=True))
        if not variants:
            raise UserError(f"{self.path} has no variants; add one to VARIANTS, or values to GRID")
        for name, changes in variants.items():
            if not isinstance(name, str):
                raise self._error("VARIANTS", f"the name of a variant must be a string, not {name!r}")
            path_component(name, f"the name of a variant in {self.path}")
            if name in RESERVED:
                raise UserError(
                    f"variant {name!r} in {self.path} has the name of a file or folder of a study; rename it"
                )
            for key in changes:
                self._check_key(f"variant {name}", key)
        return variants

    def primary(self, metrics: Sequence[str], splits: Sequence[str]) -> tuple[str, str]:
        primary = self._definitions.get("PRIMARY", (metrics[0], splits[0]))
        is_pair = isinstance(primary, tuple | list) and len(primary) == 2
        if not is_pair or primary[0] not in metrics or primary[1] not in splits:
            raise self._error(
                "PRIMARY",
                "it must be a pair of a metric in METRICS and a split in SPLITS, such as "
                f"{(metrics[0], splits[0])!r}",
            )
        return tuple(primary)

    def published(self, variants: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Reads the published scores, as published[variant][label]."""
        published = self._definitions.get("PUBLISHED", {})
        if not isinstance(published, Mapping) or not all(
            isinstance(figures, Mapping)
            and all(isinstance(label, str) and _is_number(figure) for label, figure in figures.items())
            for figures in published.values()
        ):
            raise self._error("PUBLISHED", "it must map each variant to a mapping from labels to numbers")
        for variant in published:
            choose(variants, variant, f"variant in PUBLISHED of {self.path}")
        return {variant: dict(figures) for variant, figures in published.items()}

    def _check_key(self, place: str, key: Any) -> None:
        if not isinstance(key, str):
            raise UserError(
                f"{place} in {self.path} has the key {key!r}; a key must be a string, such as 'train.steps'"
            )
        if key == "train.seed":
            raise UserError(
                f"{place} in {self.path} sets train.seed, which a sweep file must not do; use --seeds"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value_name(key: str, value: Any) -> str:
    """Returns the name of a value in a grid: the value if it is a string, otherwise field=value."""
    return value if isinstance(value, str) else f"{key.rpartition('.')[2]}={value}"
