"""Files and folders: atomic writes, locks between processes, full disks, names and links.

A run folder may come from a stranger, so nothing is written through a symbolic link.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from transformer.config import UserError

log = logging.getLogger(__name__)

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
