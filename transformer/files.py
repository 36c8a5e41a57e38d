"""Files and folders: atomic writes, locks between processes, full disks."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer.config import UserError

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries written in C++ repeat the system's message, NumPy reports how much it wrote, and TFDS checks the
# free space beforehand.
DISK_FULL_MESSAGES = re.compile(
    "|".join([*map(os.strerror, DISK_FULL_ERRORS), "Not enough disk space", r"\d+ requested and \d+ written"])
)


def atomic_write(path: Path, data: str | bytes) -> None:
    """Writes a file completely or not at all; text is written as UTF-8.

    Raises:
      UserError: the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    with full_disk(path.parent, ", then run the same command again"):
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)


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
    """Holds the lock of a folder, which only one process can hold. Creates the folder if it is missing.

    Args:
      folder: the folder; its lock is the file `.lock` in it.
      wait: whether to wait while another process holds the lock.

    Raises:
      UserError: the folder cannot be created, or another process holds the lock and `wait` is false.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; choose another folder") from None
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another process; wait for it or stop it") from None
        yield


@contextlib.contextmanager
def full_disk(place: Path, advice: str = "") -> Iterator[None]:
    """Raises a `UserError` of one line for a full disk, whichever library reports it.

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
    """Reads a JSON file.

    Raises:
      UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; restore it or delete it") from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file completely or not at all.

    Raises:
      UserError: the disk is full.
    """
    atomic_write(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
