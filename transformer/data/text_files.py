"""text_files: the user's own files. Each file is a document."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from transformer.config import UserError, option
from transformer.data.options import ONLY_A_DEPARTURE, Options
from transformer.data.text import (
    existing_file,
    fingerprint,
    has_content,
    hold_out,
    is_hidden,
    local_path,
    read_document,
)
from transformer.data.text_builder import DocumentBuilder

TRAIN_SHARE = 0.9  # of the characters of `file`
HELD_OUT = 0.05  # share of the files of `folder`, for each of validation and test
# The ways to give a text, and the options that each allows.
LAYOUTS = {"file": ("test",), "folder": (), "train": ("validation", "test")}


@dataclasses.dataclass(frozen=True)
class TextFilesOptions(Options):
    """Options of `text_files`. Exactly one of `file`, `folder` and `train` must be set.

    Each file may be compressed (.gz). `train`, `validation` and `test` may be files or folders.
    """

    # A file whose first 90 % of characters are the training split; the rest is the validation split.
    file: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    # A folder. Hashes of the paths of its files decide which files are held out for validation and test.
    folder: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    # The files of a folder that are read.
    glob: str = option("**/*.txt", not_in_paper=ONLY_A_DEPARTURE)
    train: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    validation: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)  # needed with `train`
    test: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)  # may be set with `file` and `train`


class TextFiles(DocumentBuilder):
    """Documents of text files; see `TextFilesOptions`. Empty and hidden files of a folder are left out."""

    options_type: ClassVar = TextFilesOptions
    SPLITS: ClassVar = ("train", "validation", "test")

    def variant(self) -> str:
        layout, files = self._layout(), self._files()
        paths = [path for split in files.values() for path in split]
        counts = {split: len(files[split]) for split in files}
        return f"{layout}.{fingerprint(paths, json.dumps([layout, counts]))}"

    def documents(self):
        files = self._files()
        if self._layout() == "file":
            training, validation = divide(files.pop("train")[0])
            documents = {"train": [training], "validation": [validation]}
            sizes = [f"{split} {len(texts[0]):,} characters" for split, texts in documents.items()]
        else:
            documents, sizes = {}, []
        sizes += [f"{split} {len(paths):,} files" for split, paths in files.items()]
        self.info.metadata["report"] = f"{getattr(self.options, self._layout())}: {', '.join(sizes)}"
        return documents | {split: _read(paths) for split, paths in files.items()}

    def _layout(self) -> str:
        """Returns the option that gives the text: a key of `LAYOUTS`."""
        given = [layout for layout in LAYOUTS if getattr(self.options, layout) is not None]
        if not given:
            raise UserError(
                "text_files has no text; add --config.data.options.file=FILE, or set data.options.folder or "
                "data.options.train"
            )
        if len(given) > 1:
            names = " and ".join(f"data.options.{layout}" for layout in given)
            raise UserError(
                f"text_files: {names} given; set exactly one of data.options.file, data.options.folder and "
                "data.options.train"
            )
        for name in ("validation", "test"):
            if getattr(self.options, name) is not None and name not in LAYOUTS[given[0]]:
                raise UserError(
                    f"data.options.{name} is {getattr(self.options, name)!r}; it must be None with "
                    f"data.options.{given[0]}, which holds out text for this split"
                )
        if given == ["train"] and self.options.validation is None:
            raise UserError(
                "data.options.validation is not set; set it to a file or a folder, or give all text as "
                "data.options.file or data.options.folder"
            )
        return given[0]

    def _files(self) -> dict[str, list[Path]]:
        """Returns the files of each split. With the option `file`, train has the file to divide."""
        layout = self._layout()
        if layout == "folder":
            folder = local_path(self.options.folder, "data.options.folder")
            if not folder.is_dir():
                raise UserError(f"data.options.folder: {folder} is not a folder; give the path of a folder")
            files = find_files(folder, self.options.glob, "data.options.folder")
            if len(files) < 2:
                raise UserError(
                    f"data.options.folder: {folder} has one file; give more files, or set data.options.file "
                    "to it"
                )
            return hold_out(folder, files, HELD_OUT)
        options = {"train": layout} | {split: split for split in LAYOUTS[layout]}
        files = {
            split: self._paths(name)
            for split, name in options.items()
            if getattr(self.options, name) is not None
        }
        option_of: dict[Path, str] = {}
        for split, path in [(split, path.resolve()) for split, paths in files.items() for path in paths]:
            if (first := option_of.setdefault(path, options[split])) != options[split]:
                raise UserError(
                    f"data.options.{first} and data.options.{split} both have {path}; name different files"
                )
        return files

    def _paths(self, name: str) -> list[Path]:
        """Returns the file that an option names, or the files of the folder that it names."""
        field = f"data.options.{name}"
        path = local_path(getattr(self.options, name), field)
        if path.is_dir() and name != "file":
            return find_files(path, self.options.glob, field)
        path = existing_file(path, field)
        if not has_content(path):
            raise UserError(f"{field}: {path} is empty; give a file that has text")
        return [path]


def find_files(folder: Path, pattern: str, field: str) -> list[Path]:
    """Returns the files of a folder that match a pattern, or match it with `.gz` appended, sorted by path.

    Leaves out empty files, hidden files, files of hidden folders, and a compressed file beside a file of the
    same name that is not compressed.

    Args:
      folder: the folder.
      pattern: the pattern, such as `**/*.txt`.
      field: the config field that names the folder, for the message.

    Raises:
      UserError: the pattern is not valid, or no file matches it.
    """
    try:
        plain, compressed = (set(folder.glob(f"{pattern}{suffix}")) for suffix in ("", ".gz"))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"data.options.glob is {pattern!r}; it must be a pattern of files: {error}") from None
    paths = {
        path
        for path in plain | compressed
        if path.is_file() and not is_hidden(path, folder) and has_content(path)
    }
    files = sorted(path for path in paths if path.suffix != ".gz" or path.with_suffix("") not in paths)
    if not files:
        raise UserError(
            f"{field}: {folder} has no files with text that match {pattern}; set data.options.glob to a "
            "pattern of your files"
        )
    return files


def divide(path: Path) -> tuple[str, str]:
    """Returns the first `TRAIN_SHARE` of the characters of a file, and the rest.

    Raises:
      UserError: the file has fewer than two characters, or cannot be read; see `read_document`.
    """
    text = read_document(path)
    if len(text) < 2:
        raise UserError(
            f"data.options.file: {path} has fewer than 2 characters; give a file with text to train and to "
            "validate on"
        )
    size = int(TRAIN_SHARE * len(text))
    return text[:size], text[size:]


def _read(paths: Sequence[Path]) -> Iterator[str]:
    """Yields the texts of files that have text."""
    return filter(None, map(read_document, paths))
