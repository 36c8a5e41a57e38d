"""Declaration of config fields, and the checks that every group of fields shares."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple


class UserError(ValueError):
    """An error that the user can correct. The message is one line: what is wrong, and what to do.

    Attributes:
      exit_status: exit status of a command that raises the error.
    """

    exit_status = 2


def choose(table: Mapping[str, Any], name: str, field: str) -> Any:
    """Returns `table[name]`, or raises an error that names the config field.

    Raises:
      UserError: an unknown name; the message lists the known ones.
    """
    if name not in table:
        raise UserError(f"{field} is {name!r}; it must be one of: {', '.join(sorted(table))}")
    return table[name]


# A condition on an `ExperimentConfig`.
Condition = Callable[[Any], bool]


class Rule(NamedTuple):
    """A value that the paper states in words.

    Attributes:
      text: the paper's words.
      value: returns the number that the text gives for a config, or None if the text gives no number.
    """

    text: str
    value: Callable[[Any], Any] = lambda config: None


class Declaration(NamedTuple):
    """Metadata of a config field.

    Attributes:
      paper: maps each place in the paper, such as a section, to the values reported there.
      not_in_paper: if the paper reports no value, the reason why every value agrees with the paper.
      affects_result: whether a different value changes the trained model or its scores.
      hash_default: whether `result_hash` covers the default value. It does not for a field whose default is
        the behavior from before the field existed, so the hashes of earlier runs stay the same.
      changeable: whether a trained run may be used with a different value.
      read_if: conditions under which the field has an effect; all must be true.
      departs_if: condition under which an unreported value is a departure from the paper.
    """

    paper: Mapping[str, Sequence[Any]]
    not_in_paper: str
    affects_result: bool
    hash_default: bool
    changeable: bool
    read_if: tuple[Condition, ...]
    departs_if: Condition


def option(
    default: Any = None,
    *,
    paper: Mapping[str, Sequence[Any]] | None = None,
    not_in_paper: str = "",
    affects_result: bool = True,
    hash_default: bool = True,
    changeable: bool = False,
    read_if: Condition | tuple[Condition, ...] = (),
    departs_if: Condition = lambda config: True,
    default_factory: Callable[[], Any] | None = None,
) -> Any:
    """Declares a config field; see `Declaration`. Takes either `paper` or `not_in_paper`."""
    if bool(paper) == bool(not_in_paper):
        raise TypeError("`paper` and `not_in_paper` are both given or both missing; give one of them")
    conditions = read_if if isinstance(read_if, tuple) else (read_if,)
    metadata = {
        "declaration": Declaration(
            paper or {}, not_in_paper, affects_result, hash_default, changeable, conditions, departs_if
        )
    }
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# Declares a field whose default `result_hash` leaves out, so that the runs in docs/studies keep their names.
added_option = functools.partial(option, hash_default=False)


class Section:
    """Base class of a group of fields, with checks. `section` is the prefix of the fields in dotted keys."""

    section: ClassVar[str]

    def _require(self, field: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"{self.section}.{field} is {getattr(self, field)!r}; it must be {allowed}")

    def _at_least(self, least: int, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            self._require(field, value is None or value >= least, f"at least {least}")

    def _seed(self) -> None:
        # JAX drops the higher bits of a seed, so larger seeds would repeat the runs of smaller ones.
        self._require("seed", 0 <= self.seed < 2**32, "at least 0 and below 2^32")

    def _fraction(self, *fields: str) -> None:
        for field in fields:
            self._require(field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")


def declarations(cls: type, prefix: str = "") -> dict[str, Declaration]:
    """Returns the declaration of each dotted key; `cls` is a config or the options of a data set."""
    return dict(_declarations(cls, prefix))


@functools.cache
def _declarations(cls: type, prefix: str) -> dict[str, Declaration]:
    declared: dict[str, Declaration] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            declared |= _declarations(field.type, f"{prefix}{field.name}.")
        else:
            declared[prefix + field.name] = field.metadata["declaration"]
    return declared


_type_hints = functools.cache(typing.get_type_hints)


def build_section(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Checks the types of values, and builds a dataclass from them.

    Args:
      cls: the dataclass.
      values: field name to value.
      prefix: beginning of the dotted keys in messages, such as "model.".

    Raises:
      UserError: an unknown key, or a value of the wrong type or range.
    """
    hints = _type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise unknown_key(prefix + key, [prefix + name for name in known])
    return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def unknown_key(key: str, known: Sequence[str]) -> UserError:
    """Returns the error for a key that does not exist. The message names a similar key, if there is one."""
    section, _, name = key.rpartition(".")
    siblings = [candidate for candidate in known if candidate.rpartition(".")[0] == section]
    for candidates in (siblings, known):  # prefers similar keys in the same section
        names = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
        if near := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
            return UserError(f"unknown config key {key}; did you mean {names[near[0]]}?")
    return UserError(f"unknown config key {key}; docs/family.md and `experiments.describe` list the fields")


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def from_text(kind: Any, text: str, field: str) -> Any:
    """Converts the text of a flag to the type of a field.

    Raises:
      UserError: the text cannot be converted.
    """
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if text in ("None", "null") and types.NoneType in allowed:
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in allowed:
            try:
                return number(text)
            except ValueError:
                continue
    if str in allowed:
        return text
    raise _wrong_type(allowed, text, field)


def _convert(kind: Any, value: Any, field: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{field} is {value!r}; it must be a group of fields")
        return build_section(kind, value, field + ".")
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{field} is {value!r}; it must map option names to values")
        return dict(value)
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in allowed and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    if type(value) not in allowed or (type(value) is float and not math.isfinite(value)):
        raise _wrong_type(allowed, value, field)
    return value


def _wrong_type(allowed: Sequence[type], value: Any, field: str) -> UserError:
    names = [_KIND_NAMES[kind] for kind in allowed if kind is not types.NoneType]
    names += ["None"] if types.NoneType in allowed else []
    return UserError(f"{field} is {value!r}; it must be {' or '.join(names)}")
