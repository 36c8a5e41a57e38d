"""Changes of config fields: read from flags, applied to a config, and allowed after training."""

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformer.config import (
    ExperimentConfig,
    UserError,
    check_key,
    declarations,
    flatten,
    from_dict,
    from_text,
    to_dict,
)
from transformer.fidelity import is_read

# The fields of decode that are read even if a call searches for no outputs.
READ_WITHOUT_SEARCH = ("decode.average_last", "decode.batch_tokens", "decode.max_source_length")
SEARCH_FIELDS = [
    key
    for key in declarations(ExperimentConfig)
    if key.startswith("decode.") and key not in READ_WITHOUT_SEARCH
]


def read_changes(texts: list[str], flag: str) -> dict[str, Any]:
    """Reads the KEY=VALUE texts of a flag that may be repeated. The last value of a repeated key is used.

    Args:
      texts: the values of the flag.
      flag: the name of the flag in error messages.

    Raises:
      UserError: a text has no "=", a key is unknown, or a field cannot have the given value.
    """
    changes = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--{flag}={text} has no value; write --{flag}=KEY=VALUE")
        changes[key] = _read_value(key, value)
    return changes


def _read_value(key: str, text: str) -> Any:
    """Converts a text to the type of the field `key`. Options of a data set stay text."""
    check_key(key)
    if key.startswith("data.options."):
        return text
    kind = ExperimentConfig
    for name in key.split("."):
        kind = {field.name: field.type for field in dataclasses.fields(kind)}[name]
    return from_text(kind, text, key)


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of nested dicts in which some dotted keys have new values.

    Raises:
      UserError: a key is not a config key.
    """
    values = copy.deepcopy(dict(values))
    for key, value in changes.items():
        check_key(key)
        *groups, field = key.split(".")
        group = values
        for name in groups:
            group = group.setdefault(name, {})
        group[field] = value
    return values


def changed_after_training(config: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """Returns the config of a trained model with new values for some fields.

    Raises:
      UserError: a field is unknown, may not change after training, or cannot have the new value.
    """
    changeable = [key for key, field in declarations(ExperimentConfig).items() if field.changeable]
    for key in changes:
        check_key(key)
        if key not in changeable:
            fields = [name for name in changeable if not name.startswith("decode.")]
            listed = f"{', '.join(['decode.*', *fields[:-1]])} and {fields[-1]}"
            raise UserError(f"{key} cannot change after training; only {listed} can")
    return from_dict(with_changes(to_dict(config), changes))


def converted(config: ExperimentConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes with each value in the type of its field, such as 1.0 for 1.

    Raises:
      UserError: see `changed_after_training`.
    """
    values = flatten(to_dict(changed_after_training(config, changes)))
    return {key: values[key] for key in changes}


def check_read(
    changes: Mapping[str, Any], configs: Sequence[ExperimentConfig], ignored: Collection[str] = ()
) -> None:
    """Checks that each change in `--set` has an effect.

    Args:
      changes: new values by config field.
      configs: the configs of the loaded runs, with the changes. One of them must read the field.
      ignored: fields that this call ignores, although other calls read them.

    Raises:
      UserError: a change has no effect.
    """
    for key in changes:
        if key in ignored or not any(is_read(key, config) for config in configs):
            raise UserError(f"--set changes {key}, which has no effect in this call; leave it out")
