"""python_stdlib: the source files of Python's standard library, a text that every machine has."""

import dataclasses
import fnmatch
import json
import platform
import re
import sysconfig
from pathlib import Path, PurePosixPath
from typing import ClassVar

from transformer.config import UserError, option
from transformer.data.options import ONLY_A_DEPARTURE, Options
from transformer.data.text import fingerprint, local_path, name_hash
from transformer.data.text_builder import DocumentBuilder

HELD_OUT = 0.05  # share of the files for each of validation and test
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# Tables that a program has written, and code pages, which differ in little more than their tables.
GENERATED = (
    "_sysconfigdata*.py",
    "config-*/*",
    "encodings/cp*.py",
    "encodings/hp_roman8.py",
    "encodings/iso8859_*.py",
    "encodings/koi8_*.py",
    "encodings/kz1048.py",
    "encodings/mac_*.py",
    "encodings/palmos.py",
    "encodings/ptcp154.py",
    "encodings/tis_620.py",
    "html/entities.py",
    "msilib/schema.py",
    "msilib/sequence.py",
    "pydoc_data/topics.py",
    "re/_casefix.py",
    "stringprep.py",
)
NEAR_DUPLICATES = "encodings/"  # these files resemble each other, so all are in the training split


@dataclasses.dataclass(frozen=True)
class PythonStdlibOptions(Options):
    """Options of `python_stdlib`."""

    # Library folder of another Python, such as /usr/lib/python3.12; if None, that of the running Python.
    folder: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)


class PythonStdlib(DocumentBuilder):
    """Source files of Python's standard library, without tests and generated tables: about 9 MB.

    A document is a file, byte for byte. A hash of its path decides its split, so a file is in the same split
    for every version of Python. Empty files and files that are not UTF-8 are left out.
    """

    options_type: ClassVar = PythonStdlibOptions
    SPLITS: ClassVar = ("train", "validation", "test")

    def variant(self) -> str:
        files = self._files()
        version = platform.python_version() if self.options.folder is None else self._folder.name
        version = re.sub(r"[^\w.-]", "_", version)  # it becomes part of a path
        return f"{version}.{fingerprint(files.values(), json.dumps([*files]))}"

    def documents(self):
        documents: dict[str, list[str]] = {split: [] for split in self.SPLITS}
        for name, path in self._files().items():
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError:
                continue
            if text:
                documents[split_of(name)].append(text)
        sizes = "; ".join(
            f"{split} {len(texts):,} files, {sum(len(text.encode()) for text in texts):,} bytes"
            for split, texts in documents.items()
        )
        origin = f"Python {platform.python_version()}" if self.options.folder is None else self._folder
        self.info.metadata["report"] = f"standard library of {origin}: {sizes}"
        return documents

    @property
    def _folder(self) -> Path:
        if self.options.folder is None:
            return Path(sysconfig.get_paths()["stdlib"])
        return local_path(self.options.folder, "data.options.folder").resolve()

    def _files(self) -> dict[str, Path]:
        """Returns the files by their path in the library, in the order of these paths."""
        folder = self._folder
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py") if path.is_file()}
        if kept := {name: files[name] for name in sorted(files) if is_kept(name)}:
            return kept
        raise UserError(
            f"{folder} has no Python files; set data.options.folder to the library folder of a Python"
        )


def is_kept(name: str) -> bool:
    """Returns whether a file of the library is a document, by its path in the library."""
    is_excluded = EXCLUDED_FOLDERS.intersection(PurePosixPath(name).parts[:-1])
    return not is_excluded and not any(fnmatch.fnmatchcase(name, pattern) for pattern in GENERATED)


def split_of(name: str) -> str:
    """Returns the split of a file, by its path in the library."""
    position = 1.0 if name.startswith(NEAR_DUPLICATES) else name_hash(name)
    if position < HELD_OUT:
        return "validation"
    return "test" if position < 2 * HELD_OUT else "train"
