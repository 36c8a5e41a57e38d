"""Folders that several processes write to, on disks that may be full."""

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path

from transformer.config import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries in C++ pass on the system's words, NumPy says how much it wrote, TFDS looks beforehand.
_SAID = re.compile(
    "|".join([*map(os.strerror, FULL), "Not enough disk space", r"\d+ requested and \d+ written"])
)


@contextlib.contextmanager
def room(place: Path, advice: str):
    """Turns a full disk into one line, whichever library met it.

    Raises:
      UserError: there is no room in `place`; `advice` says what else may be done.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise UserError(f"{place}: the disk or quota is full; make room{advice}") from error


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that a disk is full."""
    told = (error.errno in FULL) if isinstance(error, OSError) and error.errno else _SAID.search(str(error))
    return bool(told) or (error.__cause__ is not None and is_full(error.__cause__))


@contextlib.contextmanager
def locked(folder: Path):
    """Lets one process at a time prepare in a folder; the others wait and find it done.

    Raises:
      UserError: the folder cannot be, or has no room.
    """
    with room(folder, " or set data.data_dir, then give the same command again"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from None
        with open(folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
