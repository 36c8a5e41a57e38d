"""JSON files with a digest of their values, and manifests with the digests of the files in a folder."""

import hashlib
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from transformer.config import UserError
from transformer.files import atomic_write

MANIFEST = "manifest.json"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      UserError: the file cannot be read, or is not a JSON object. NaN and Infinity are not JSON.
    """
    try:
        values = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; restore it or delete it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} has {str(values)[:40]!r} instead of a JSON object; restore it or delete it")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file completely or not at all.

    Raises:
      ValueError: a number is not finite; see `finite`.
      UserError: the disk is full.
    """
    atomic_write(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file with a digest of its values, which `read_sealed` checks; see `write_json`."""
    write_json(path, sealed(values))


def read_sealed(path: Path, types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads a JSON file that `write_sealed` wrote, and returns the values.

    Args:
      path: the file.
      types: the type of some of the values, such as `dict[str, str]`; see `check_types`.

    Raises:
      UserError: the file cannot be read, was changed after it was written, or has a value of another type.
    """
    values = read_json(path)
    if values.get("sha256") != seal(values):
        raise UserError(f"{path} was damaged or edited after it was written; restore it or delete it")
    del values["sha256"]
    return check_types(path, values, types or {})


def check_types(path: Path, values: dict[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the types of the values in a JSON file, which another program may have written.

    Returns the values.

    Args:
      path: the file, for the error message.
      values: the content of the file.
      types: the type of some of the values. Only a value whose type includes None may be missing.

    Raises:
      UserError: a value is missing or has another type.
    """
    for name, kind in types.items():
        if not _has_type(values.get(name), kind):
            problem = f"{name!r} has an unexpected value" if name in values else f"{name!r} is missing"
            raise UserError(f"{path} is not a file of this program: {problem}; restore it or delete it")
    return values


def _has_type(value: Any, kind: Any) -> bool:
    """Returns whether a JSON value has a type: a class, Any, a union, `dict[str, X]`, `list[X]` or a tuple.

    An integer is also a float, but a bool is not an integer. JSON stores a tuple as a list.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is UnionType:
        return any(_has_type(value, argument) for argument in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(_has_type(item, arguments[1]) for item in value.values())
    if origin is tuple and arguments[-1] is not Ellipsis:
        return (
            isinstance(value, list) and len(value) == len(arguments) and all(map(_has_type, value, arguments))
        )
    if origin in (list, tuple):
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with their digest under the key "sha256"."""
    return {**values, "sha256": seal(values)}


def seal(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 digest of JSON data, without the key "sha256"."""
    content = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def finite(value: float) -> float | None:
    """Returns a number, or None for NaN and infinity, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def write_manifest(folder: Path, **values: Any) -> None:
    """Writes manifest.json: `values` and the digest of every file in the folder."""
    write_sealed(folder / MANIFEST, {**values, "files": _file_digests(folder)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Checks the files of a folder against its manifest, and returns the values of the manifest.

    Raises:
      UserError: a file is missing, was changed, or was added after the manifest was written.
    """
    advice = f"delete {folder} and run the same command again"
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder / MANIFEST} is missing; {advice}")
    values = read_sealed(folder / MANIFEST, {"files": dict[str, str]})
    stored, current = values.pop("files"), _file_digests(folder)
    for name in sorted(stored.keys() | current.keys()):
        if stored.get(name) != current.get(name):
            problem = "is missing" if name not in current else "was damaged or changed after it was written"
            raise UserError(f"{folder / name} {problem}; {advice}")
    return values


def _file_digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
