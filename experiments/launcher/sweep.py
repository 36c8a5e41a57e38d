"""A study: named overrides of one config, times seeds, expanded into runs with stable names."""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from transformer.config import ADDED, ExperimentConfig, UserError, check_key, flatten, from_dict, to_dict
from transformer.model import build

# Fields that do not change what a run computes, and so not its name.
IRRELEVANT = {"data.data_dir", "data.manual_dir", "data.workers", "train.log_every", "train.placement"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A study, as a file in configs/sweeps declares it.

    Attributes:
      config: config file, with its arguments after a colon.
      variants: dotted config keys and their values, by name; the first variant is the reference.
      splits: what every run is evaluated on.
      metrics: scores in the table; the first one is drawn.
    """

    name: str
    config: str
    variants: dict[str, dict[str, Any]]
    splits: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    variant: str
    seed: int
    config: ExperimentConfig

    @property
    def id(self) -> str:
        """`variant/seed-hash`: another config is another run, so nothing is ever overwritten."""
        return f"{self.variant}/{self.seed}-{config_hash(self.config)}"


def load_sweep(path: str) -> Sweep:
    """Reads a sweep file; `path` may carry config arguments, as in `configs/sweeps/positions.py:smoke`."""
    path, _, argument = path.partition(":")
    module = load_module(path, "sweep")
    try:
        config = module.CONFIG + (f"{',' if ':' in module.CONFIG else ':'}{argument}" if argument else "")
        return Sweep(
            name=Path(path).stem,
            config=config,
            variants=module.VARIANTS,
            splits=tuple(module.SPLITS),
            metrics=tuple(module.METRICS),
        )
    except AttributeError as error:
        raise UserError(f"sweep file {path} does not define {error.name}") from None


def expand(sweep: Sweep, overrides: dict[str, Any], seeds: int) -> list[PlannedRun]:
    """Every variant with every seed, seeds outermost, so that a first comparison is there early."""
    path, _, argument = sweep.config.partition(":")
    base = load_module(path, "config").get_config(argument).to_dict()
    varied = {"train.seed", *(key for changes in sweep.variants.values() for key in changes)}
    for key in varied & set(overrides):
        raise UserError(f"--set={key}: the study itself varies it")
    configs = {name: {**flatten(base), **overrides, **changes} for name, changes in sweep.variants.items()}
    for key in {key for config in configs.values() for key in config}:
        check_key(key)
    runs = [
        PlannedRun(name, seed, from_dict(_nest(config | {"train.seed": seed})))
        for seed in range(seeds)
        for name, config in configs.items()
    ]
    for run in runs:
        build(run.config.model, vocab_size=1)  # a wrong name shows before anything is trained
    return runs


def config_hash(config: ExperimentConfig) -> str:
    """Eight hexadecimal digits that name what a run computes."""
    before = flatten(ADDED)  # a field that came later must not rename the runs that do without it
    relevant = {
        key: value
        for key, value in flatten(to_dict(config)).items()
        if key not in IRRELEVANT and not (key in before and before[key] == value)
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]


def load_module(path: str, what: str):
    """Executes a config or sweep file."""
    if not Path(path).is_file():
        raise UserError(f"there is no {what} file {path!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{what} file {path}: {type(error).__name__}: {error}") from error
    return module


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, field = key.partition(".")
        nested.setdefault(section, {})[field] = value
    return nested
