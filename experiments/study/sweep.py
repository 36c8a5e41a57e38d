"""Plan of a study: one run for each variant of a config with each seed."""

import dataclasses
import difflib
import itertools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.config_files import load_module, load_values, with_changes
from experiments.study.equal import ADJUSTED, equalize
from transformer.config import ExperimentConfig, UserError, choose, from_dict, result_hash
from transformer.data.builders import check_split_name, options_type
from transformer.evaluation.metrics import METRICS, metrics_for
from transformer.fidelity import is_read
from transformer.files import path_component
from transformer.tasks import resolve

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
Changes = Mapping[str, Any]  # new values by dotted config key


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A study, as declared by a sweep file, such as the files in configs/sweeps.

    Attributes:
      name: the name of the sweep file, without .py.
      question: the docstring of the sweep file.
      config: the config file; a colon and arguments may follow.
      variants: the changes of each variant, those of VARIANTS and then those of GRID.
      baseline: the variant that the others are compared with.
      splits: the splits on which every run is evaluated.
      metrics: the metrics in the table.
      primary: the metric and the split whose differences are tested; everything else is descriptive.
      tune: the values to try, by config key. Every variant is trained with every combination and the first
        seed, and gets the one with the lowest validation loss.
      equal: a key of `equal.ADJUSTED`, which all variants get as much of as the baseline; None for no
        adjustment.
      published: figures of the same variants elsewhere, as published[variant][label], for the report.
    """

    name: str
    question: str
    config: str
    variants: dict[str, dict[str, Any]]
    baseline: str
    splits: tuple[str, ...]
    metrics: tuple[str, ...]
    primary: tuple[str, str]
    tune: dict[str, list[Any]]
    equal: str | None
    published: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The combinations of `tune`; a single empty one if nothing is tuned."""
        return [
            dict(zip(self.tune, values, strict=True)) for values in itertools.product(*self.tune.values())
        ]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study: a variant with a seed."""

    variant: str
    seed: int
    config: ExperimentConfig

    @property
    def id(self) -> str:
        """Folder of the run in the study folder: `variant/seed-hash`.

        The hash covers all fields that affect the result, so a run with another config has another folder.
        """
        return f"{self.variant}/{self.seed}-{self.config_hash[:8]}"

    @property
    def config_hash(self) -> str:
        """Digest of the fields of the config that affect the result."""
        return result_hash(self.config, options_type(self.config.data.name))


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
            f"{path} is a config file; name it as CONFIG in a sweep file, or use experiments.train"
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
    primary = read.texts("PRIMARY", (metrics[0], splits[0]))
    if len(primary) != 2 or primary[0] not in metrics or primary[1] not in splits:
        raise UserError(
            f"PRIMARY in {path} is {primary!r}; it must be an entry of METRICS and an entry of SPLITS, "
            f"such as {(metrics[0], splits[0])!r}"
        )
    tune = read.values("TUNE")
    if varied := [key for key in tune if any(key in changes for changes in variants.values())]:
        raise UserError(
            f"TUNE in {path} tries {varied[0]}, which a variant sets; leave it out of one of them"
        )
    equal = read.text("EQUAL", "") or None
    if equal:
        choose(ADJUSTED, equal, f"EQUAL in {path}")
        for name, changes in variants.items():
            if ADJUSTED[equal] in {**changes, **tune}:
                raise UserError(
                    f"EQUAL in {path} works out {ADJUSTED[equal]}, which variant {name} or TUNE sets; "
                    "leave it out"
                )
    return Sweep(
        name=Path(path).stem,
        question=(module.__doc__ or "").strip(),
        config=config,
        variants=variants,
        baseline=baseline,
        splits=splits,
        metrics=metrics,
        primary=primary,
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

    def _refuse(self, name: str, rule: str) -> UserError:
        return UserError(f"{name} in {self._path} is {getattr(self._module, name)!r}; {rule}")

    def text(self, name: str, default: str | None = None) -> str:
        value = getattr(self._module, name, default)
        if not isinstance(value, str):
            raise self._refuse(name, "it must be text")
        return value

    def texts(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = getattr(self._module, name, default)
        if isinstance(value, str):
            raise self._refuse(name, f"it must be a tuple: ({value!r},)")
        if not isinstance(value, tuple | list) or not value or not all(isinstance(x, str) for x in value):
            raise self._refuse(name, "it must be a tuple of text with at least one entry")
        if len(set(value)) < len(value):
            raise self._refuse(name, "an entry is repeated; name each once")
        return tuple(value)

    def values(self, name: str) -> dict[str, list[Any]]:
        """Reads a mapping from config keys to the values that each takes."""
        found = getattr(self._module, name, {})
        if not isinstance(found, Mapping):
            raise self._refuse(name, "it must map config keys to the values to try")
        for key, values in found.items():
            if not isinstance(values, tuple | list) or not values:
                raise self._refuse(name, f"the values of {key} must be a tuple with at least one entry")
            self._check_key(name, key)
        return {key: list(values) for key, values in found.items()}

    def variants(self) -> dict[str, dict[str, Any]]:
        found = getattr(self._module, "VARIANTS", {})
        if not isinstance(found, Mapping) or not all(isinstance(value, Mapping) for value in found.values()):
            raise self._refuse("VARIANTS", "it must map the name of each variant to its changes")
        grid = self.values("GRID")
        variants = {name: dict(changes) for name, changes in found.items()}
        for values in itertools.product(*grid.values()) if grid else ():
            name = ",".join(map(_value_name, grid, values))
            if name in variants:
                raise self._refuse("GRID", f"{name} is also the name of another variant; rename that one")
            variants[name] = dict(zip(grid, values, strict=True))
        if not variants:
            raise self._refuse("VARIANTS", "it must have at least one variant")
        for name, changes in variants.items():
            if not isinstance(name, str):
                raise self._refuse("VARIANTS", f"the name of a variant must be text, not {name!r}")
            path_component(name, f"the name of a variant in {self._path}")
            for key in changes:
                self._check_key(f"variant {name}", key)
        return variants

    def published(self, variants: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Reads the mapping from variants to published figures by label."""
        found = getattr(self._module, "PUBLISHED", {})
        if not isinstance(found, Mapping) or not all(
            isinstance(figures, Mapping)
            and all(isinstance(label, str) and isinstance(x, int | float) for label, x in figures.items())
            for figures in found.values()
        ):
            raise self._refuse("PUBLISHED", "it must map variants to figures by label, which are numbers")
        for variant in found:
            choose(variants, variant, f"variant in PUBLISHED of {self._path}")
        return {variant: dict(figures) for variant, figures in found.items()}

    def _check_key(self, place: str, key: Any) -> None:
        if not isinstance(key, str):
            raise UserError(
                f"{place} in {self._path} has the key {key!r}; a key must be text, as in train.steps"
            )
        if key == "train.seed":
            raise UserError(
                f"{place} in {self._path} sets train.seed; give the number of seeds to launch: --seeds"
            )


def _value_name(key: str, value: Any) -> str:
    """Returns the name of a value of a grid; text names itself."""
    return value if isinstance(value, str) else f"{key.rpartition('.')[2]}={value}"


def expand(
    sweep: Sweep, overrides: Changes, seeds: int, chosen: Mapping[str, Changes] | None = None
) -> list[PlannedRun]:
    """Returns a run for every variant with every seed.

    All variants with seed 0 come first, so that a first comparison of the variants is early.

    Args:
      sweep: the study.
      overrides: new values by dotted config key, for all variants.
      seeds: number of seeds; the seeds are 0, 1, ...
      chosen: the tuned values of each variant; None if the study tunes nothing.

    Raises:
      UserError: a change in a variant or in `overrides` is not possible.
    """
    configs = _configs(sweep, overrides, chosen or {})
    return [
        PlannedRun(
            variant, seed, dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        )
        for seed in range(seeds)
        for variant, config in configs.items()
    ]


def expand_trials(sweep: Sweep, overrides: Changes) -> list[tuple[PlannedRun, Changes]]:
    """Returns the runs that tune each variant, with the values that each tries; see `Sweep.tune`.

    Raises:
      UserError: see `expand`.
    """
    runs = []
    for values in sweep.trials:
        configs = _configs(sweep, overrides, dict.fromkeys(sweep.variants, values))
        runs += [(PlannedRun(variant, 0, config), values) for variant, config in configs.items()]
    return runs


def _configs(sweep: Sweep, overrides: Changes, chosen: Mapping[str, Changes]) -> dict[str, ExperimentConfig]:
    """Returns the config of each variant with seed 0, after all checks."""
    values = load_values(sweep.config)
    varied = {"train.seed", *sweep.tune, *(key for changes in sweep.variants.values() for key in changes)}
    for key in varied & set(overrides):
        raise UserError(f"--set cannot change {key}, which the study varies; change the sweep file instead")
    configs = {}
    for variant, changes in sweep.variants.items():
        changes = {**changes, **chosen.get(variant, {})}
        config = _changed(variant, values, {**overrides, "train.seed": 0}, changes)
        for metric in sweep.metrics:
            if metric not in metrics_for(config.data.target):
                raise UserError(
                    f"METRICS has {metric}, which has no meaning for {config.data.target} "
                    f"(variant {variant}); leave it out"
                )
        for split in sweep.splits:
            check_split_name(config.data, split)
        configs[variant] = config
    if sweep.equal:
        configs = equalize(sweep.equal, configs, sweep.baseline)
    names: dict[str, str] = {}
    for variant, config in configs.items():
        first = names.setdefault(PlannedRun(variant, 0, config).config_hash, variant)
        if first != variant:
            raise UserError(f"variants {first} and {variant} are the same config; leave one out")
    return configs


def _changed(variant: str, values: Changes, common: Changes, changes: Changes) -> ExperimentConfig:
    """Returns the config of a variant: the base values with the common changes and those of the variant."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            raise UserError(
                f"variant {variant} changes {key}, which is a group of fields; "
                f"name single fields, such as {key}.{next(iter(value))}"
            )
    config = resolve(from_dict(with_changes(values, {**common, **changes})))
    for key in changes:
        if not is_read(key, config):
            raise UserError(f"variant {variant} sets {key}, which has no effect there; leave it out")
    return config
