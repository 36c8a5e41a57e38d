"""Text files of sentence pairs or documents, plain or compressed."""

import codecs
import functools
import gzip
import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from transformer.config import UserError
from transformer.files import is_address

MAX_LINE_BYTES = 1 << 20  # a longer line is not a sentence, and may not even end
MAX_DOCUMENT_BYTES = 1 << 30  # a record must stay below 2 GiB


def read_pairs(*paths: Path) -> Iterator[tuple[str, str]]:
    """Yields the pairs of one TSV file, or of two files with one sentence per line. Lines end at "\\n" only.

    Raises:
      UserError: a file is damaged or not UTF-8, a line does not have two fields or is too long, or two files
        do not have the same number of lines.
    """
    if len(paths) == 1:
        for number, line in enumerate(_lines(paths[0]), start=1):
            fields = line.split("\t")
            if len(fields) != 2:
                raise UserError(
                    f"{paths[0]}:{number}: expected 2 tab-separated fields, found {len(fields)}; "
                    "for one file per language give source.txt,target.txt"
                )
            yield fields[0], fields[1]
        return
    sides = [_lines(path) for path in paths]
    for number, pair in enumerate(itertools.zip_longest(*sides), start=1):
        if None in pair:
            shorter, longer = paths if pair[0] is None else reversed(paths)
            num_left = sum(1 for side in sides for _ in side)
            raise UserError(
                f"{shorter} has {number - 1} lines, but {longer} has {number + num_left}; "
                "both must have the same number of lines"
            )
        yield pair


def read_document(path: Path) -> str:
    """Returns the text of a file. Only a byte order mark at its start is left out.

    Raises:
      UserError: the file is damaged, too large or not UTF-8.
    """
    with _open(path) as file:
        try:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path}: compressed file is damaged: {error}; download or copy it again"
            ) from None
    if len(content) > MAX_DOCUMENT_BYTES:
        raise UserError(f"{path} has over {MAX_DOCUMENT_BYTES:,} bytes; divide it into several files")
    return decode_document(content, str(path))


def decode_document(content: bytes, origin: str) -> str:
    """Returns the text of a document, without a byte order mark at its start.

    Args:
      content: the bytes of the document.
      origin: name of the file, for the message.

    Raises:
      UserError: the bytes are not UTF-8.
    """
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin}: not UTF-8 at byte {error.start + 1:,}; convert the file to UTF-8"
        ) from None


def is_hidden(path: Path, folder: Path) -> bool:
    """Returns whether a file of a folder, or a folder between them, is hidden: its name begins with a dot."""
    return any(part.startswith(".") and part != ".." for part in path.relative_to(folder).parts)


def has_content(path: Path) -> bool:
    """Returns whether a file, which may be compressed, has at least one byte; a damaged file counts."""
    with _open(path) as file:
        try:
            return bool(file.read(1))
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return True


def name_hash(name: str) -> float:
    """Returns a number from 0 to 1 that depends only on the name. It decides the split of a file."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def hold_out(folder: Path, files: Sequence[Path], share: float) -> dict[str, list[Path]]:
    """Divides the files of a folder into splits. The files whose paths have the smallest hashes are held out.

    Validation and test get a share of the files each, but at least one file. Two files give no test split.
    """
    order = sorted(files, key=lambda path: name_hash(path.relative_to(folder).as_posix()))
    size = max(1, round(share * len(files)))
    num_held_out = 2 * size if len(files) > 2 else size
    splits = {
        "train": order[num_held_out:],
        "validation": order[:size],
        "test": order[size:num_held_out],
    }
    return {split: sorted(paths) for split, paths in splits.items() if paths}


def local_path(text: str, field: str) -> Path:
    """Returns the path that a config field names, with the home folder in place of `~`.

    Raises:
      UserError: the text is an address, such as gs://bucket/text, or begins with an unknown home folder.
    """
    if is_address(text):
        raise UserError(f"{field} is {text!r}; it must be a path on this machine")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise UserError(f"{field} is {text!r}, but there is no such user; write ./~ for a name with a tilde")
    return Path(path)


def existing_file(path: Path, field: str) -> Path:
    """Returns `path`, or `path` with `.gz` appended if only that file exists.

    Args:
      path: the file.
      field: the config field that names the file, for the message.

    Raises:
      UserError: neither file exists.
    """
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise UserError(f"{field}: {path} (or .gz) is not a file; give the path of a file")


def fingerprint(paths: Iterable[Path], suffix: str = "") -> str:
    """Returns twelve hexadecimal digits of a hash over the contents of files and a suffix."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(_file_digest(path, (status.st_ino, status.st_size, status.st_ctime_ns)))
    digest.update(suffix.encode())
    return digest.hexdigest()[:12]


@functools.lru_cache(maxsize=100_000)
def _file_digest(path: Path, status: tuple[int, ...]) -> bytes:
    """Returns a hash of a file, which is computed again if its status has changed."""
    del status  # a part of the key of the cache
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _open(path: Path) -> io.BufferedIOBase:
    """Opens a file to read its bytes, and decompresses them if its first bytes are those of gzip."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_compressed else open(path, "rb")


def _lines(path: Path) -> Iterator[str]:
    number = 0
    with _open(path) as file:
        try:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{path}:{number}: the line has over {MAX_LINE_BYTES:,} bytes; shorten it"
                    )
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8; convert the file to UTF-8") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path}: compressed file is damaged after line {number}: {error}; download or copy it again"
            ) from None
