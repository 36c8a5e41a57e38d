"""The complete config of a run, with its conversions and its hash."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from transformer.config.data import DataConfig
from transformer.config.decode import DecodeConfig
from transformer.config.fields import UserError, build_section, declarations, option, unknown_key
from transformer.config.model import ModelConfig
from transformer.config.optimizer import OptimizerConfig
from transformer.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """The complete config of a run."""

    # A name in tasks.TASKS.
    task: str = option("translation", paper={"section 6.1": ["translation"]})
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)

    def __post_init__(self):
        if self.task == "translation" and self.data.source == self.data.target:
            raise UserError(
                f"data.target is {self.data.target!r}; it must be a different language from data.source"
            )
        if self.decode.average_last > self.train.keep_last:
            raise UserError(
                f"decode.average_last is {self.decode.average_last}; "
                f"it must be at most train.keep_last ({self.train.keep_last})"
            )


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Returns a config as plain nested dicts, for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Builds and validates a config; missing keys take their defaults.

    Raises:
      UserError: an unknown key, or a value of the wrong type or range.
    """
    return build_section(ExperimentConfig, values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict with dotted keys. An empty dict has no key in the result."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def check_key(key: str) -> None:
    """Checks that a dotted key names a config field. Keys of `data.options` are checked elsewhere.

    Raises:
      UserError: there is no such field, or the key names a group of fields.
    """
    if key.startswith("data.options."):
        return
    known = [*declarations(ExperimentConfig), "data.options.NAME"]
    known.remove("data.options")
    if key in known:
        return
    if members := [name for name in known if name.startswith(f"{key}.")]:
        raise UserError(f"{key} is a group of fields; name one of its fields, such as {members[0]}")
    raise unknown_key(key, known)


def result_hash(config: ExperimentConfig, options_type: type | None = None) -> str:
    """Returns the SHA-256 digest of all fields that affect the result; see `Declaration.hash_default`.

    The names of run folders contain its first 8 digits.

    Args:
      config: a config with complete `data.options`, as `tasks.resolve` returns it.
      options_type: the dataclass that declares the options of the data set; if None, every option affects
        the result.
    """
    declared, defaults = declarations(ExperimentConfig), _defaults()
    if options_type is not None:
        declared |= declarations(options_type, "data.options.")

    def is_relevant(key, value):
        declaration = declared.get(key)
        if declaration is None:
            return True
        return declaration.affects_result and (declaration.hash_default or value != defaults[key])

    relevant = {key: value for key, value in flatten(to_dict(config)).items() if is_relevant(key, value)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


@functools.cache
def _defaults() -> dict[str, Any]:
    return flatten(to_dict(ExperimentConfig()))


def difference(
    stored: ExperimentConfig,
    given: ExperimentConfig,
    is_compared: Callable[[str], bool] = lambda key: True,
) -> str:
    """Describes the first three fields in which two configs differ, and counts the remaining ones.

    Args:
      stored: the config of a run.
      given: the config that is compared with it.
      is_compared: whether a field is compared, by its key, such as "model.d_model".
    """
    old, new = flatten(to_dict(stored)), flatten(to_dict(given))
    fields = [
        f"{key} is {old.get(key)!r} there, {new.get(key)!r} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and is_compared(key)
    ]
    return "; ".join(fields[:3]) + (f"; and {len(fields) - 3} more" if len(fields) > 3 else "")
