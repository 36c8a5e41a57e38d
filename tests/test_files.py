"""Atomic writes, locks, names, links, and errors caused by a full disk."""

import contextlib
import errno
import fcntl
import os

import pytest

from transformer.config import UserError
from transformer.files import (
    atomic_folder,
    atomic_write,
    full_disk,
    lock,
    path_component,
    refuse_links,
    try_lock,
)


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


def test_a_lock_cannot_be_taken_while_another_holder_has_it(tmp_path):
    folder = tmp_path / "above" / "folder"
    with (
        lock(folder, wait=True),
        pytest.raises(UserError, match=f"{folder} is in use by another process"),
        lock(folder, wait=False),
    ):
        pass
    with lock(folder, wait=False):
        assert folder.is_dir()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with lock(tmp_path, wait=False):
        pass
    try_lock(tmp_path / "other").close()
    message = f"has no locks ({os.strerror(number)}); use this folder in one process at a time"
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: the file system of {path} {message}" for path in (tmp_path / ".lock", tmp_path / "other")
    ]


def test_a_path_that_is_a_file_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"cannot create {place}: "), lock(place, wait=True):
            pass


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


def test_nothing_is_written_through_a_link(tmp_path):
    private, folder = tmp_path / "private", tmp_path / "run"
    private.write_text("secret")
    folder.mkdir()
    for name in ("x.json", "x.json.partial"):
        (folder / name).symlink_to(private)
    atomic_write(folder / "x.json", "new")
    assert private.read_text() == "secret"
    assert (folder / "x.json").read_text() == "new"
    (folder / ".lock").symlink_to(private)
    with pytest.raises(UserError, match="is a symbolic link; delete it"), lock(folder, wait=False):
        pass
    with pytest.raises(UserError, match=r"\.lock is a symbolic link; replace it with a copy of its target"):
        refuse_links(folder)
    assert private.read_text() == "secret"


def test_a_pipe_in_a_run_folder_is_refused(tmp_path):
    """Reading a pipe would wait forever."""
    (tmp_path / "run" / "eval").mkdir(parents=True)
    os.mkfifo(tmp_path / "run" / "eval" / "test.json")
    with pytest.raises(UserError, match=r"test\.json is neither a file nor a folder; delete it"):
        refuse_links(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", "-x", ".hidden", "a\0", "a\n", "a\\b", "x" * 201]
)
def test_a_name_that_is_not_a_plain_file_name_is_refused(name):
    with pytest.raises(UserError, match="--name is .*; it must be a plain file name"):
        path_component(name, "--name")


@pytest.mark.parametrize("name", ["test", "a,b=1.0", "zwölf", "train[:90%]", "x" * 200])
def test_a_plain_file_name_is_returned(name):
    assert path_component(name, "--name") == name
