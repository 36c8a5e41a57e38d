"""Files and folders: atomic writes, sealed JSON, locks between processes, full disks.

A run folder may come from a stranger, so nothing is written through a symbolic link.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO

from transformer.config import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAX_NAME_BYTES = 200  # most systems allow 255, but suffixes are appended
# ENOTSUP and EOPNOTSUPP differ on macOS.
NO_LOCKS_ERRORS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries written in C++ repeat the system's message, NumPy reports how much it wrote, and TFDS checks the
# free space beforehand.
DISK_FULL_MESSAGES = re.compile(
    "|".join([*map(os.strerror, DISK_FULL_ERRORS), "Not enough disk space", r"\d+ requested and \d+ written"])
)


def atomic_write(path: Path, data: str | bytes) -> None:
    """Writes a file completely or not at all; text is written as UTF-8.

    If `path` is a symbolic link, the file replaces the link.

    Raises:
      UserError: the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    with full_disk(path.parent, ", then run the same command again"):
        partial.unlink(missing_ok=True)
        with open(partial, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)


def refuse_links(folder: Path) -> None:
    """Checks that a run or study folder has only files and folders.

    A symbolic link could lead out of the folder, and reading a pipe could wait forever. The path of
    the folder itself may contain links.

    Raises:
      UserError: the folder has anything else, such as a symbolic link.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    raise UserError(
                        f"{path} is a symbolic link; replace it with a copy of its target, or delete it"
                    )
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise UserError(f"{path} is neither a file nor a folder; delete it")


def is_address(text: str) -> bool:
    """Returns whether a string is a URL, such as gs://bucket/runs, rather than a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def path_component(name: str, field: str) -> str:
    """Returns a name unchanged if it is safe as one component of a path.

    Args:
      name: the name.
      field: the origin of the name, for the message.

    Raises:
      UserError: the name is empty, begins with "." or "-", or has a separator, a control character or more
        than `MAX_NAME_BYTES` bytes.
    """
    long = len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES
    if not name or name[0] in ".-" or long or any(c in "/\\" or not c.isprintable() for c in name):
        raise UserError(
            f"{field} is {name[:80]!r}; it must be a plain file name: no '/' or control character, no '.' or "
            f"'-' at the start, at most {MAX_NAME_BYTES} bytes"
        )
    return name


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, and renames it to `path` if no exception occurred.

    Deletes the partial folder of an earlier attempt. `path` must not exist or must be an empty folder.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def lock(folder: Path, wait: bool) -> Iterator[None]:
    """Holds the lock of a folder inside the context. Creates the folder if it is missing.

    Only one process can hold the lock.

    Args:
      folder: the folder; its lock is the file `.lock` in it.
      wait: whether to wait while another process holds the lock.

    Raises:
      UserError: the folder cannot be created, or another process holds the lock and `wait` is false.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        raise UserError(f"cannot create {folder}: {error.strerror}; name another folder") from None
    with open_lock(folder / ".lock") as file:
        try:
            _flock(file, wait)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another process; wait for it or stop it") from None
        yield


def try_lock(path: Path) -> BinaryIO | None:
    """Locks a file and returns it open; returns None if another process holds the lock.

    The lock is released once this process and all processes that inherited the open file have closed it.
    """
    file = open_lock(path)
    try:
        _flock(file, wait=False)
    except BlockingIOError:
        file.close()
        return None
    return file


def _flock(file: BinaryIO, wait: bool) -> None:
    """Takes a lock; on a file system without locks, logs a warning instead.

    Raises:
      BlockingIOError: another process holds the lock, and `wait` is false.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS_ERRORS:
            raise
        log.warning(
            "warning: the file system of %s has no locks (%s); use this folder in one process at a time",
            file.name,
            error.strerror,
        )


def open_lock(path: Path) -> BinaryIO:
    """Opens a lock file. Creates the file if it is missing, and follows no symbolic link.

    Raises:
      UserError: the file is a symbolic link, or cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        return open(path, "r+b", opener=lambda name, _: os.open(name, flags, 0o666))
    except OSError as error:
        if is_full(error):
            raise
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a symbolic link; delete it") from None
        raise UserError(f"cannot write {path}: {error.strerror}; use another folder") from None


def is_writable(folder: Path) -> bool:
    """Returns whether this process may write into a folder, or may create it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)


@contextlib.contextmanager
def full_disk(place: Path, advice: str = "") -> Iterator[None]:
    """Raises a one-line `UserError` if the disk is full, whichever library reports it.

    Args:
      place: the file or folder that is written, for the message.
      advice: follows "free some space" in the message, such as " or set data.data_dir".

    Raises:
      UserError: the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise UserError(f"{place}: the disk or quota is full; free some space{advice}") from error


def is_full(error: BaseException) -> bool:
    """Returns whether an error, or one of its causes, reports a full disk."""
    if isinstance(error, OSError) and error.errno:
        full = error.errno in DISK_FULL_ERRORS
    else:
        full = DISK_FULL_MESSAGES.search(str(error)) is not None
    return full or (error.__cause__ is not None and is_full(error.__cause__))


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
