"""A full disk is known by what each library says, and nothing else is taken for one."""

import errno

import pytest

from transformer.config import UserError
from transformer.disk import locked, room


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError("113009 requested and 112576 written"),  # NumPy
        OSError("Not enough disk space. Needed: 3 GiB"),  # TFDS
        RuntimeError("write() failed: File too large; writing x"),  # array_record
        ValueError("RESOURCE_EXHAUSTED: Failed to write 8 bytes: No space left on device"),  # Orbax
    ],
    ids=str,
)
def test_a_full_disk_is_one_line(tmp_path, error):
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        with pytest.raises(UserError) as caught, room(tmp_path, ", please"):
            raise raised
        assert str(caught.value) == f"{tmp_path}: the disk or quota is full; make room, please"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "I/O error"),
        ValueError("RESOURCE_EXHAUSTED: Out of memory"),
        UserError("File too large"),
    ],
    ids=str,
)
def test_another_error_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, room(tmp_path, ""):
        raise error
    assert caught.value is error


def test_a_place_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"cannot make {place}: "), locked(place):
            pass
