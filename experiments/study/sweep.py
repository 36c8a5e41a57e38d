"""Plan of a study: one run for each variant of a config with each seed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config_files import load_module, load_values, with_changes
from transformer.config import ExperimentConfig, UserError, choose, from_dict, result_hash
from transformer.data.builders import options_type
from transformer.evaluation.metrics import METRICS, metrics_for
from transformer.files import path_component
from transformer.tasks import resolve


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A study, as declared by a sweep file, such as the files in configs/sweeps.

    Attributes:
      name: the name of the sweep file, without .py.
      config: the config file; a colon and arguments may follow.
      variants: new values by dotted config key, for each variant; the first variant is the baseline.
      splits: the splits on which every run is evaluated.
      metrics: the metrics in the table; the first metric is also plotted.
    """

    name: str
    config: str
    variants: dict[str, dict[str, Any]]
    splits: tuple[str, ...]
    metrics: tuple[str, ...]


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
    """Reads a sweep file.

    Args:
      name: path of the file; a colon and arguments for the config may follow, as in
        `configs/sweeps/positions.py:smoke`.

    Raises:
      UserError: the file cannot be executed, or a definition is missing.
    """
    path, _, argument = name.partition(":")
    module = load_module(path, "sweep")
    try:
        config = module.CONFIG
        if argument:
            config += f"{',' if ':' in config else ':'}{argument}"
        for metric in module.METRICS:
            choose(METRICS, metric, f"an entry of METRICS in {path}")
        for name, entries in (("VARIANTS", module.VARIANTS), ("SPLITS", module.SPLITS)):
            for entry in entries:
                path_component(entry, f"an entry of {name} in {path}")
        return Sweep(
            name=Path(path).stem,
            config=config,
            variants=module.VARIANTS,
            splits=tuple(module.SPLITS),
            metrics=tuple(module.METRICS),
        )
    except AttributeError as error:
        if hasattr(module, "get_config"):
            raise UserError(
                f"{path} is a config file; name it as CONFIG in a sweep file, or use experiments.train"
            ) from None
        raise UserError(
            f"sweep file {path} does not define {error.name}; define it as in configs/sweeps/positions.py"
        ) from None


def expand(sweep: Sweep, overrides: Mapping[str, Any], seeds: int) -> list[PlannedRun]:
    """Returns a run for every variant with every seed.

    All variants with seed 0 come first, so that a first comparison of the variants is early.

    Args:
      sweep: the study.
      overrides: new values by dotted config key, for all variants.
      seeds: number of seeds; the seeds are 0, 1, ...

    Raises:
      UserError: a change in a variant or in `overrides` is not possible.
    """
    values = load_values(sweep.config)
    varied = {"train.seed", *(key for changes in sweep.variants.values() for key in changes)}
    for key in varied & set(overrides):
        raise UserError(f"--set cannot change {key}, which the study varies; change the sweep file instead")
    for variant, changes in sweep.variants.items():
        for key, value in changes.items():
            if isinstance(value, Mapping) and value:
                raise UserError(
                    f"variant {variant} changes {key}, which is a group of fields; "
                    f"name single fields, such as {key}.{next(iter(value))}"
                )
    runs = [
        PlannedRun(
            variant,
            seed,
            resolve(from_dict(with_changes(values, {**overrides, **changes, "train.seed": seed}))),
        )
        for seed in range(seeds)
        for variant, changes in sweep.variants.items()
    ]
    for run in runs:
        for metric in sweep.metrics:
            if metric not in metrics_for(run.config.data.target):
                raise UserError(
                    f"METRICS has {metric}, which has no meaning for {run.config.data.target} "
                    f"(variant {run.variant}); leave it out"
                )
    return runs
