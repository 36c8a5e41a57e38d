"""Reads sweep files, such as the files in configs/sweeps."""

import difflib
import itertools
import math
from collections.abc import Mapping
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
# Names in the folder of a study, beside the folders of the variants.
RESERVED = ("config.json", "report", "slurm", "study.json")
# What TUNE may try in a study with EQUAL: fields that do not change the cost of a step.
COST_FREE = ("optimizer.", "model.dropout_rate", "train.label_smoothing", "train.accumulation")


def load_sweep(name: str) -> Sweep:
    """Reads a sweep file, and checks all that can be checked without the config.

    Args:
      name: path of the file; a colon and arguments for the config may follow, as in
        `configs/sweeps/positions.py:smoke`.

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
    read = _Reader(module, path)
    config = read.text("CONFIG")
    if argument:
        config += f"{',' if ':' in config else ':'}{argument}"
    metrics, splits = read.texts("METRICS"), read.texts("SPLITS")
    for metric in metrics:
        choose(METRICS, metric, f"an entry of METRICS in {path}")
    for split in splits:
        path_component(split, f"an entry of SPLITS in {path}")
    variants = read.variants()
    baseline = read.text("BASELINE", next(iter(variants)))
    choose(variants, baseline, f"BASELINE in {path}")
    primary = getattr(module, "PRIMARY", (metrics[0], splits[0]))
    is_pair = isinstance(primary, tuple | list) and len(primary) == 2
    if not is_pair or primary[0] not in metrics or primary[1] not in splits:
        raise UserError(
            f"PRIMARY in {path} is {primary!r}; it must be a pair of a metric in METRICS and a split in "
            f"SPLITS, such as {(metrics[0], splits[0])!r}"
        )
    tune = read.values("TUNE")
    if varied := [key for key in tune if any(key in changes for changes in variants.values())]:
        raise UserError(
            f"TUNE in {path} tries {varied[0]}, which a variant also sets; remove it from TUNE or from "
            "the variant"
        )
    equal = read.text("EQUAL", "") or None
    if equal:
        choose(ADJUSTED_FIELD, equal, f"EQUAL in {path}")
        field = ADJUSTED_FIELD[equal]
        for name, changes in variants.items():
            if field in {**changes, **tune}:
                raise UserError(
                    f"EQUAL in {path} computes {field}, which variant {name} or TUNE also sets; "
                    f"leave {field} out"
                )
        if costly := [key for key in tune if not key.startswith(COST_FREE)]:
            raise UserError(
                f"TUNE in {path} tries {costly[0]}, which may change the costs that EQUAL makes equal; "
                "remove it from TUNE, or leave EQUAL out"
            )
    return Sweep(
        name=Path(path).stem,
        question=(module.__doc__ or "").strip(),
        config=config,
        variants=variants,
        baseline=baseline,
        splits=splits,
        metrics=metrics,
        primary=tuple(primary),
        tune=tune,
        equal=equal,
        published=read.published(variants),
    )


def _check_names(module: ModuleType, path: str) -> None:
    """Checks that required names are defined, and that no name is misspelt."""
    for name in ("CONFIG", "SPLITS", "METRICS"):
        if not hasattr(module, name):
            raise UserError(
                f"sweep file {path} does not define {name}; define it as in configs/sweeps/positions.py"
            )
    if not hasattr(module, "VARIANTS") and not hasattr(module, "GRID"):
        raise UserError(
            f"sweep file {path} defines neither VARIANTS nor GRID; define one as in "
            "configs/sweeps/positions.py"
        )
    for name in vars(module):
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.8)
        if name.isupper() and near and name not in NAMES:
            raise UserError(f"sweep file {path} defines {name}; did you mean {near[0]}?")


class _Reader:
    """Reads the definitions of a sweep file, and refuses values of a wrong type."""

    def __init__(self, module: ModuleType, path: str):
        self._module, self._path = module, path

    def _error(self, name: str, rule: str) -> UserError:
        return UserError(f"{name} in {self._path} is {getattr(self._module, name)!r}; {rule}")

    def text(self, name: str, default: str | None = None) -> str:
        value = getattr(self._module, name, default)
        if not isinstance(value, str):
            raise self._error(name, "it must be a string")
        return value

    def texts(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = getattr(self._module, name, default)
        if isinstance(value, str):
            raise self._error(name, f"it must be a tuple: ({value!r},)")
        if not isinstance(value, tuple | list) or not value or not all(isinstance(x, str) for x in value):
            raise self._error(name, "it must be a tuple of strings with at least one entry")
        if len(set(value)) < len(value):
            raise self._error(name, "an entry is repeated; name each once")
        return tuple(value)

    def values(self, name: str) -> dict[str, list[Any]]:
        """Reads a mapping from each config key to the values to try."""
        values_by_key = getattr(self._module, name, {})
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
        named = getattr(self._module, "VARIANTS", {})
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
            raise self._error("VARIANTS", "it must have at least one variant")
        for name, changes in variants.items():
            if not isinstance(name, str):
                raise self._error("VARIANTS", f"the name of a variant must be a string, not {name!r}")
            path_component(name, f"the name of a variant in {self._path}")
            if name in RESERVED:
                raise self._error("VARIANTS", f"a study has a file or folder of the name {name}; rename it")
            for key in changes:
                self._check_key(f"variant {name}", key)
        return variants

    def published(self, variants: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Reads the published scores, as published[variant][label]."""
        published = getattr(self._module, "PUBLISHED", {})
        if not isinstance(published, Mapping) or not all(
            isinstance(figures, Mapping)
            and all(isinstance(label, str) and _is_number(figure) for label, figure in figures.items())
            for figures in published.values()
        ):
            raise self._error("PUBLISHED", "it must map each variant to a mapping from labels to numbers")
        for variant in published:
            choose(variants, variant, f"variant in PUBLISHED of {self._path}")
        return {variant: dict(figures) for variant, figures in published.items()}

    def _check_key(self, place: str, key: Any) -> None:
        if not isinstance(key, str):
            raise UserError(
                f"{place} in {self._path} has the key {key!r}; a key must be a string, such as 'train.steps'"
            )
        if key == "train.seed":
            raise UserError(
                f"{place} in {self._path} sets train.seed, which a sweep file must not do; use --seeds"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value_name(key: str, value: Any) -> str:
    """Returns the name of a value in a grid: the value if it is a string, otherwise field=value."""
    return value if isinstance(value, str) else f"{key.rpartition('.')[2]}={value}"
