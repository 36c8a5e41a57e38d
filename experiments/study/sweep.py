"""Plan of a study: variants of one config times seeds, as runs whose names do not change."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config_files import load_module, load_values, with_changes
from transformer.config import ExperimentConfig, UserError, choose, from_dict, result_hash
from transformer.data.builders import options_type
from transformer.evaluation.metrics import METRICS
from transformer.tasks import resolve


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A study, as a file in configs/sweeps declares it.

    Attributes:
      name: the name of the file.
      config: config file, with its arguments after a colon.
      variants: changes by variant, as dotted config keys and their values; the first is the baseline.
      splits: the splits on which every run is evaluated.
      metrics: the metrics in the table; the first is plotted.
    """

    name: str
    config: str
    variants: dict[str, dict[str, Any]]
    splits: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A variant with a seed."""

    variant: str
    seed: int
    config: ExperimentConfig

    @property
    def id(self) -> str:
        """`variant/seed-hash`: another config is another run, so nothing is ever overwritten."""
        options = options_type(self.config.data.name)
        return f"{self.variant}/{self.seed}-{result_hash(self.config, options)}"


def load_sweep(name: str) -> Sweep:
    """Reads a study file; `name` may end in config arguments, as in `configs/sweeps/positions.py:smoke`.

    Raises:
      UserError: the file cannot be executed or lacks a definition.
    """
    path, _, argument = name.partition(":")
    module = load_module(path, "sweep")
    try:
        config = module.CONFIG
        if argument:
            config += f"{',' if ':' in config else ':'}{argument}"
        for metric in module.METRICS:
            choose(METRICS, metric, f"an entry of METRICS in {path}")
        return Sweep(
            name=Path(path).stem,
            config=config,
            variants=module.VARIANTS,
            splits=tuple(module.SPLITS),
            metrics=tuple(module.METRICS),
        )
    except AttributeError as error:
        raise UserError(
            f"sweep file {path} does not define {error.name}; see configs/sweeps/positions.py"
        ) from None


def expand(sweep: Sweep, overrides: Mapping[str, Any], seeds: int) -> list[PlannedRun]:
    """Returns every variant with every seed, seeds outermost, so that a first comparison ends early.

    Args:
      sweep: the study.
      overrides: changes of all variants.
      seeds: number of seeds, from 0.

    Raises:
      UserError: a change that a variant or `overrides` cannot make.
    """
    values = load_values(sweep.config)
    varied = {"train.seed", *(key for changes in sweep.variants.values() for key in changes)}
    for key in varied & set(overrides):
        raise UserError(f"--set={key}: the study varies this field; change the sweep file")
    for variant, changes in sweep.variants.items():
        for key, value in changes.items():
            if isinstance(value, Mapping) and value:
                raise UserError(f"variant {variant} has a group, {key}; write {key}.{next(iter(value))}")
    return [
        PlannedRun(
            variant,
            seed,
            resolve(from_dict(with_changes(values, {**overrides, **changes, "train.seed": seed}))),
        )
        for seed in range(seeds)
        for variant, changes in sweep.variants.items()
    ]
