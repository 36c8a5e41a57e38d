"""Atomic writes, locks, JSON files, and errors caused by a full disk."""

import contextlib
import errno
import os

import pytest

from transformer.config import UserError
from transformer.files import atomic_folder, atomic_write, full_disk, lock, read_json, write_json


@pytest.mark.parametrize("content", ["zwölf\n", b"\xff\x00"])
def test_a_file_is_written_and_replaced(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("earlier")
    atomic_write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    def fill_the_disk(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_text("earlier")
    monkeypatch.setattr(os, "replace", fill_the_disk)
    with pytest.raises(UserError, match=f"{tmp_path}: the disk or quota is full; free some space, then run"):
        atomic_write(path, "later")
    assert path.read_text() == "earlier"


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "above" / "folder"
    with contextlib.suppress(ValueError), atomic_folder(path) as partial:
        (partial / "half").touch()
        raise ValueError
    assert not path.exists()
    with atomic_folder(path) as partial:
        assert list(partial.iterdir()) == []  # nothing is left of the first attempt
        (partial / "whole").touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["whole"]
    assert list(path.parent.iterdir()) == [path]


def test_a_held_lock_is_refused_until_it_is_released(tmp_path):
    folder = tmp_path / "above" / "folder"
    with (
        lock(folder, wait=True),
        pytest.raises(UserError, match=f"{folder} is in use by another process"),
        lock(folder, wait=False),
    ):
        pass
    with lock(folder, wait=False):
        assert folder.is_dir()


def test_a_path_that_is_a_file_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"cannot create {place}: "), lock(place, wait=True):
            pass


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "values.json"
    values = {"zwölf": [1, 2.5, None, True], "nested": {"a": "b"}}
    write_json(path, values)
    assert read_json(path) == values
    assert "zwölf" in path.read_text("utf-8")


@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_json_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "values.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"{path} cannot be read: "):
        read_json(path)


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
def test_a_full_disk_gives_a_one_line_error(tmp_path, error):
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        with pytest.raises(UserError) as caught, full_disk(tmp_path, " or buy a disk"):
            raise raised
        expected = f"{tmp_path}: the disk or quota is full; free some space or buy a disk"
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "I/O error"),
        ValueError("RESOURCE_EXHAUSTED: Out of memory"),
        UserError("File too large"),
    ],
    ids=str,
)
def test_other_errors_are_raised_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught, full_disk(tmp_path):
        raise error
    assert caught.value is error
