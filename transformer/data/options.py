"""Options of a data set: `data.options`, checked against the dataclass that declares the options."""

import dataclasses
from typing import Any, ClassVar

from transformer.config import DataConfig, Section, UserError, build_section, from_text

ONLY_A_DEPARTURE = "read only by a data set that the paper does not use"


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Base class of the options of a data set. A subclass declares its fields with `config.option`."""

    section: ClassVar[str] = "data.options"


def read_options(options_type: type[Options], data: DataConfig, owner: str) -> Any:
    """Returns `data.options` as an instance of its dataclass, completed with the defaults.

    A value given as text, such as "300" or "None" from a flag, is converted to the type of its field.

    Args:
      options_type: the dataclass that declares the options.
      data: the config that holds the values.
      owner: name of the data set in messages.

    Raises:
      UserError: an option that the data set does not have, or a value of the wrong type or range.
    """
    types = {field.name: field.type for field in dataclasses.fields(options_type)}
    values = {}
    for name, value in data.options.items():
        field = f"data.options.{name}"
        if name not in types:
            known = ", ".join(types) or "none"
            raise UserError(f"{field} is not an option of {owner}; its options: {known}")
        values[name] = from_text(types[name], value, field) if isinstance(value, str) else value
    return build_section(options_type, values, "data.options.")
