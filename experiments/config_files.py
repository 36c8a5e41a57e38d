"""Config and study files, which a user names on the command line, and changes of single fields."""

import copy
import dataclasses
import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer.config import ExperimentConfig, UserError, check_key, from_dict, from_text

ROOT = Path(__file__).parent.parent


def load_config(name: str, changes: Mapping[str, Any]) -> ExperimentConfig:
    """Returns the config of a file, with changed fields; see `with_changes`.

    Args:
      name: path of the file, with its arguments after a colon: `configs/multi30k.py:cpu,smoke`.
      changes: dotted config keys and their values.

    Raises:
      UserError: the file cannot be executed, or the config is wrong.
    """
    return from_dict(with_changes(load_values(name), changes))


def load_values(name: str) -> dict[str, Any]:
    """Returns the config of a file as nested dicts, not checked yet."""
    path, _, argument = name.partition(":")
    module = load_module(path, "config")
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {path} does not define get_config; see configs/base.py")
    try:
        return module.get_config(argument).to_dict()
    except UserError:
        raise
    except Exception as error:  # the file is code of the user
        raise UserError(f"config file {path}: {type(error).__name__}: {error}") from error


def load_module(path: str, kind: str) -> ModuleType:
    """Executes a config or study file.

    Args:
      path: path of the file.
      kind: "config" or "sweep", for messages.

    Raises:
      UserError: there is no such file, or it raises an exception.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no {kind} file {path!r}{_advice(path)}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise UserError(f"{kind} file {path!r} is not a Python file; name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is code of the user
        raise UserError(f"{kind} file {path}: {type(error).__name__}: {error}") from error
    return module


def _advice(path: str) -> str:
    """Names the file that was probably meant."""
    if not Path("configs/base.py").is_file() and (ROOT / path).is_file():
        return f" here; run the command in {ROOT}"
    known = [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("configs/**/[!_]*.py"))]
    stems = {Path(file).stem: file for file in reversed(known)}  # a config before the study of its name
    near = difflib.get_close_matches(Path(path).stem, stems, n=1, cutoff=0.7)
    return f"; did you mean {stems[near[0]]}?" if near else ""


def read_changes(texts: list[str], flag: str) -> dict[str, Any]:
    """Reads the KEY=VALUE texts of a repeated flag; the last value of a key counts.

    Args:
      texts: the flag's values.
      flag: the flag's name, for messages.

    Raises:
      UserError: a text without "=", an unknown key, or a value that its field cannot have.
    """
    changes = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--{flag}={text} has no value; write --{flag}=KEY=VALUE")
        changes[key] = _read_value(key, value)
    return changes


def _read_value(key: str, text: str) -> Any:
    """Converts the text of a flag to the type of the field; options of a data set stay text."""
    check_key(key)
    if key.startswith("data.options."):
        return text
    kind = ExperimentConfig
    for name in key.split("."):
        kind = {field.name: field.type for field in dataclasses.fields(kind)}[name]
    return from_text(kind, text, key)


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts with other values for some dotted keys.

    Raises:
      UserError: no config has a key.
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
