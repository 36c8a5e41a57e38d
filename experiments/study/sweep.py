"""Plan of a study: one run for each variant of a config with each seed."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

from experiments.config_changes import with_changes
from experiments.config_files import load_values
from experiments.run_folder import config_hash
from experiments.study.equal import equalize
from transformer.config import ExperimentConfig, UserError, choose, flatten, from_dict, to_dict
from transformer.fidelity import is_read
from transformer.tasks import resolve, task_type

Changes = Mapping[str, Any]  # new values by dotted config key


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A study, as declared by a sweep file; configs/sweeps has examples.

    Attributes:
      name: the name of the sweep file, without .py.
      question: the docstring of the sweep file.
      config: the config file; a colon and arguments may follow.
      variants: the new values of each variant by config key; variants from VARIANTS precede those from GRID.
      baseline: the variant that the others are compared with.
      splits: the splits on which every run is evaluated.
      metrics: the metrics in the table.
      primary: the metric and the split whose differences are tested; everything else is descriptive.
      tune: the values to try, by config key. Each variant is trained with every combination of values and the
        first seed, and uses the combination with the lowest validation loss.
      equal: the resource of which every variant gets as much as the baseline, a key of
        `equal.ADJUSTED_FIELD`; None for no adjustment.
      published: published[variant][label] is a published score, which the report shows beside ours.
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
        """The combinations of the values in `tune`; a single empty combination if nothing is tuned."""
        return [
            dict(zip(self.tune, values, strict=True)) for values in itertools.product(*self.tune.values())
        ]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study: a variant with a seed.

    Attributes:
      variant: the name of the variant.
      seed: the seed.
      config: the config of the run.
      task: the name of the task, if the sweep file has several configs; otherwise empty.
    """

    variant: str
    seed: int
    config: ExperimentConfig
    task: str = ""

    @property
    def id(self) -> str:
        """Folder of the run in the study of its task: `variant/seed-hash`.

        The hash covers all fields that affect the result, so runs that differ in such a field have different
        folders.
        """
        return f"{self.variant}/{self.seed}-{self.config_hash[:8]}"

    @property
    def row(self) -> str:
        """The variant, after the name of the task if there are several: `task/variant`."""
        return row_name(self.task, self.variant)

    @property
    def label(self) -> str:
        """The run as in `--only`: `variant/seed`, or `task/variant/seed`."""
        return f"{self.row}/{self.seed}"

    @property
    def path(self) -> str:
        """Folder of the run in the root folder of the launch: `id`, or `task/id`."""
        return f"{self.task}/{self.id}" if self.task else self.id

    @functools.cached_property
    def config_hash(self) -> str:
        """Digest of the fields of the config that affect the result."""
        return config_hash(self.config)


def row_name(task: str, variant: str) -> str:
    """Returns the name of a variant in a study: `task/variant`, or `variant` if the task has no name."""
    return f"{task}/{variant}" if task else variant


def expand(
    sweep: Sweep,
    overrides: Changes,
    seeds: int,
    chosen: Mapping[str, Changes] | None = None,
    task: str = "",
) -> list[PlannedRun]:
    """Returns a run for every variant with every seed.

    The runs are in order of seed, so that the variants can be compared early.

    Args:
      sweep: the study.
      overrides: new values by dotted config key, for all variants.
      seeds: number of seeds; the seeds are 0, 1, ...
      chosen: the tuned values of each variant; None if the study tunes nothing.
      task: see `PlannedRun`.

    Raises:
      UserError: a change in a variant or in `overrides` is invalid.
    """
    configs = _configs(sweep, overrides, chosen or {})
    return [
        PlannedRun(
            variant,
            seed,
            dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed)),
            task,
        )
        for seed in range(seeds)
        for variant, config in configs.items()
    ]


def expand_trials(sweep: Sweep, overrides: Changes, task: str = "") -> list[tuple[PlannedRun, Changes]]:
    """Returns the runs that tune each variant, with the values that each run tries; see `Sweep.tune`.

    Raises:
      UserError: see `expand`.
    """
    runs = []
    for values in sweep.trials:
        configs = _configs(sweep, overrides, dict.fromkeys(sweep.variants, values))
        runs += [(PlannedRun(variant, 0, config, task), values) for variant, config in configs.items()]
    return runs


def refusals(sweep: Sweep, overrides: Changes) -> dict[str, str]:
    """Returns the reason of each variant that the config refuses, or whose changes have no effect in it.

    Raises:
      UserError: the config refuses the baseline, or `overrides`.
    """
    values, common, reasons = _base_values(sweep, overrides), {**overrides, "train.seed": 0}, {}
    baseline = _changed(values, common, sweep.variants[sweep.baseline])
    _check_read(sweep.baseline, sweep.variants[sweep.baseline], baseline)
    names = {config_hash(baseline): sweep.baseline}
    for variant, changes in sweep.variants.items():
        if variant == sweep.baseline:
            continue
        try:
            config = _changed(values, common, changes)
        except UserError as error:
            reasons[variant] = str(error)
            continue
        if unread := _unread(changes, config):
            reasons[variant] = f"{unread[0]} has no effect"
        elif (first := names.setdefault(config_hash(config), variant)) != variant:
            reasons[variant] = f"its config is that of {first}"
    return reasons


def _base_values(sweep: Sweep, overrides: Changes) -> dict[str, Any]:
    """Returns the values of the config file, after a check of the keys in `overrides`."""
    varied = {"train.seed", *sweep.tune, *(key for changes in sweep.variants.values() for key in changes)}
    for key in varied & set(overrides):
        raise UserError(f"--set cannot change {key}, which the study varies; change the sweep file instead")
    return load_values(sweep.config)


def _configs(sweep: Sweep, overrides: Changes, chosen: Mapping[str, Changes]) -> dict[str, ExperimentConfig]:
    """Returns the config of each variant with seed 0, after all checks."""
    values, common, configs = _base_values(sweep, overrides), {**overrides, "train.seed": 0}, {}
    for variant, changes in sweep.variants.items():
        changes = {**changes, **chosen.get(variant, {})}
        try:
            config = _changed(values, common, changes)
        except UserError as error:
            _changed(values, common, {})  # the error may be one of the config or of `overrides`
            raise UserError(f"variant {variant}: {error}") from None
        _check_read(variant, changes, config)
        metrics = dict.fromkeys(task_type(config).metrics(config))
        for metric in sweep.metrics:
            choose(metrics, metric, f"an entry of METRICS for variant {variant} (task {config.task})")
        for split in sweep.splits:
            task_type(config).check_split_name(config, split)
        configs[variant] = config
    if sweep.equal:
        configs = equalize(sweep.equal, configs, sweep.baseline)
    names: dict[str, str] = {}
    for variant, config in configs.items():
        first = names.setdefault(config_hash(config), variant)
        if first != variant:
            keys = dict.fromkeys((*sweep.variants[first], *sweep.variants[variant]))
            values = flatten(to_dict(config))
            shared = ", ".join(f"{key}={values.get(key)}" for key in keys)
            raise UserError(
                f"variants {first} and {variant} have the same config, with {shared}; leave out one of them"
            )
    return configs


def _changed(values: Changes, common: Changes, changes: Changes) -> ExperimentConfig:
    """Returns the config of a variant: the base values with the common changes and those of the variant."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            raise UserError(
                f"{key} is a group of fields; name single fields, such as {key}.{next(iter(value))}"
            )
    return resolve(from_dict(with_changes(values, {**common, **changes})))


def _check_read(variant: str, changes: Changes, config: ExperimentConfig) -> None:
    """Checks that every change of a variant has an effect in its config."""
    for key in _unread(changes, config):
        raise UserError(f"variant {variant} sets {key}, which has no effect in its config; leave it out")


def _unread(changes: Changes, config: ExperimentConfig) -> list[str]:
    """Returns the changed fields that a config does not read."""
    return [key for key in changes if not is_read(key, config)]
