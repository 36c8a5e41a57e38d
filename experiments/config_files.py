"""Loads config files and sweep files."""

import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.config_changes import with_changes
from transformer.config import ExperimentConfig, UserError, from_dict

ROOT = Path(__file__).parent.parent


def load_config(name: str, changes: Mapping[str, Any]) -> ExperimentConfig:
    """Returns the config that a file defines, after changing some fields; see `with_changes`.

    Args:
      name: path of the file; a colon and arguments may follow, as in `configs/multi30k.py:cpu,smoke`.
      changes: new values by dotted config key, such as `train.seed`.

    Raises:
      UserError: the file cannot be executed, or a value in the config is wrong.
    """
    return from_dict(with_changes(load_values(name), changes))


def load_values(name: str) -> dict[str, Any]:
    """Returns the config that a file defines, as nested dicts with unchecked values."""
    path, _, argument = name.partition(":")
    module = load_module(path, "config")
    if not hasattr(module, "get_config"):
        if hasattr(module, "VARIANTS"):
            raise UserError(
                f"{path} is a sweep file, not a config file; run python -m experiments.launch --sweep={path}"
            )
        raise UserError(f"config file {path} does not define get_config; define it as in configs/base.py")
    try:
        return module.get_config(argument).to_dict()
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"config file {path}: {type(error).__name__}: {error}") from error


def load_module(path: str, kind: str) -> ModuleType:
    """Executes a config file or a sweep file.

    Args:
      path: path of the file.
      kind: "config" or "sweep", for error messages.

    Raises:
      UserError: the file is missing, is not a Python file, or raises an exception.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no {kind} file {path!r}{_advice(path)}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise UserError(f"{kind} file {path!r} is not a Python file; name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{kind} file {path}: {reason}") from error
    return module


def _advice(path: str) -> str:
    """Returns a suggestion for a missing file, to be added to the error message; may be empty."""
    if not Path("configs/base.py").is_file() and (ROOT / path).is_file():
        return f" here; run the command in {ROOT}"
    known = [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("configs/**/[!_]*.py"))]
    stems = {Path(file).stem: file for file in reversed(known)}  # prefers configs
    near = difflib.get_close_matches(Path(path).stem, stems, n=1, cutoff=0.7)
    return f"; did you mean {stems[near[0]]}?" if near else ""
