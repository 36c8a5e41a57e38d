"""Data sets: names, options and preparation. A name that is not in `BUILDERS` is a data set of TFDS.

To add a data set, write a subclass of `PairBuilder` or `DocumentBuilder` and a subclass of `Options`, and add
the builder to `BUILDERS`.
"""

import contextlib
import dataclasses
import io
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from transformer.config import DataConfig, UserError
from transformer.data import tfds_sets
from transformer.data.multi30k import Multi30k
from transformer.data.number_words import NumberWords
from transformer.data.options import Options, read_options
from transformer.data.parallel_text import ParallelText
from transformer.data.progress import Progress
from transformer.data.python_stdlib import PythonStdlib
from transformer.data.records import DOCUMENT, Record
from transformer.data.text import local_path
from transformer.data.text_builder import DocumentBuilder, TextBuilder
from transformer.data.text_files import TextFiles
from transformer.files import full_disk, is_full, lock, path_component

log = logging.getLogger(__name__)

BUILDERS: dict[str, type[TextBuilder]] = {
    "number_words": NumberWords,
    "multi30k": Multi30k,
    "parallel_text": ParallelText,
    "python_stdlib": PythonStdlib,
    "text_files": TextFiles,
}


def options_type(name: str) -> type[Options]:
    """Returns the dataclass that declares the options of a data set."""
    return BUILDERS[name].options_type if name in BUILDERS else tfds_sets.TfdsOptions


def resolve_options(data: DataConfig) -> DataConfig:
    """Checks `data.options`, converts values given as text, and completes them with the defaults.

    Raises:
      UserError: an option that the data set does not have, or a value of the wrong type or range.
    """
    owner = data.name if data.name in BUILDERS else tfds_sets.describe(data.name)
    options = read_options(options_type(data.name), data, owner)
    return dataclasses.replace(data, options=dataclasses.asdict(options))


def prepare(data: DataConfig, progress: Progress | None = None) -> tfds.core.DatasetBuilder:
    """Prepares a data set as array_record, unless it is prepared already, and returns its builder.

    Args:
      data: the config of the data set.
      progress: receives progress reports; if None, they are logged.

    Raises:
      UserError: an unknown data set, an option or file that cannot be used, a full disk, or a set of TFDS
        that cannot be prepared on this machine.
    """
    builder = _make_builder(data, progress)
    if not tfds_sets.is_prepared(builder):
        folder = Path(builder.data_dir).parent
        with preparation_lock(folder), contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            if isinstance(builder, TextBuilder):
                # Leftovers of killed processes: this process has the lock, so no other process is writing.
                for partial in folder.glob("incomplete.*"):
                    shutil.rmtree(partial)
                builder.download_and_prepare()
            else:
                tfds_sets.prepare(builder)
        # The first builder does not notice data that another process has prepared in the meantime.
        builder = _make_builder(data, progress)
    if isinstance(builder, TextBuilder) and "report" in builder.info.metadata:
        log.info(builder.info.metadata["report"])
    return builder


def open_prepared(data: DataConfig, stored_name: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of data that was prepared earlier. Reads no raw text and writes nothing.

    Args:
      data: the config of the data set.
      stored_name: the result of `data_name` when the data was prepared.

    Raises:
      UserError: the data is not prepared on this machine, or is damaged.
    """
    builder = _find_prepared(data, stored_name)
    if builder is None:
        place = data.data_dir or "the default folder of TFDS"
        raise UserError(
            f"{stored_name} is not prepared in {place}; "
            "prepare it with python -m experiments.prepare --workdir=RUN"
        )
    return builder


def is_prepared(data: DataConfig, stored_name: str) -> bool:
    """Returns whether `open_prepared` finds the data. Reads no raw text and writes nothing."""
    return _find_prepared(data, stored_name) is not None


def check_split_name(data: DataConfig, split: str) -> None:
    """Checks the name of a split before the data is prepared. Does nothing if the names are unknown by then.

    Raises:
      UserError: the data set has no such split.
    """
    if data.name not in BUILDERS:
        return
    names = BUILDERS[data.name].SPLITS
    if names and split not in names:
        raise UserError(f"{data.name} has no split {split!r}; choose {', '.join(names)}")
    has_text = data.options.get("file") or data.options.get("train")
    has_test = data.options.get("test") or data.options.get("held_out")
    if split == "test" and has_text and not has_test:
        raise UserError(
            f"{data.name} has no split 'test'; set data.options.test to the files of this split, or choose "
            "train or validation"
        )


def split_names(data: DataConfig, stored_name: str) -> Sequence[str]:
    """Returns the names of the splits; empty if they are unknown because the data is not prepared here."""
    if data.name in BUILDERS and BUILDERS[data.name].SPLITS:
        return BUILDERS[data.name].SPLITS
    builder = _find_prepared(data, stored_name)
    return () if builder is None else [*builder.info.splits]


def columns_of(data: DataConfig, builder: tfds.core.DatasetBuilder) -> Record:
    """Returns the columns of a data set: its two languages, or `DOCUMENT`."""
    if isinstance(builder, TextBuilder):
        return builder.columns
    return tfds_sets.find_columns(data, builder.info.features)


def check_kind(data: DataConfig, kind: str) -> None:
    """Checks that the records of a data set are what a task needs, before the data is prepared.

    Args:
      data: the config of the data set.
      kind: "pairs" or "documents".

    Raises:
      UserError: the data set has records of the other kind, or does not exist.
    """
    if data.name in BUILDERS:
        has_documents = issubclass(BUILDERS[data.name], DocumentBuilder)
    else:
        has_documents = columns_of(data, _make_builder(data, None)) == DOCUMENT
    if has_documents != (kind == "documents"):
        present = "documents" if has_documents else "pairs"
        raise UserError(f"data.name is {data.name!r}, a set of {present}; choose a set of {kind}")


def check_data(data: DataConfig, kind: str) -> None:
    """Checks that a data set exists, with its files. Prepares nothing, and uses no network.

    Args:
      data: the config of the data set.
      kind: see `check_kind`.

    Raises:
      UserError: an unknown data set, one of the other kind, an option, file or language that cannot be used,
        or a missing TensorFlow.
    """
    check_kind(data, kind)
    builder = _make_builder(data, None)
    if data.name not in BUILDERS:
        tfds_sets.check_tensorflow(builder)
        if builder.info.splits:
            tfds_sets.split_parts(data, builder.info)


def data_name(data: DataConfig) -> str:
    """Returns the name of a data set's current content, which changes with the raw text.

    Raises:
      UserError: an unknown data set, or an option or file that cannot be used.
    """
    return _make_builder(data, None).info.full_name


def present_name(data: DataConfig) -> str | None:
    """Returns the result of `data_name`, or None if the raw text is missing or cannot be read."""
    try:
        return data_name(data)
    except UserError:
        return None


@contextlib.contextmanager
def preparation_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time prepare data in a folder; other processes wait.

    Raises:
      UserError: the folder cannot be created, or the disk is full.
    """
    with full_disk(folder, " or set data.data_dir, then run the same command again"), lock(folder, wait=True):
        yield


@contextlib.contextmanager
def reporting_damage(folder: Path) -> Iterator[None]:
    """Converts exceptions caused by damaged prepared data into a `UserError` that names the folder.

    Raises:
      UserError: TFDS or array_record raised an exception.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the readers of TFDS, protobuf and array_record raise many types
        if is_full(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"the prepared data in {folder} is damaged: {reason}; "
            "delete the folder and run the same command again"
        ) from error


def _find_prepared(data: DataConfig, stored_name: str) -> tfds.core.DatasetBuilder | None:
    variant = None
    if data.name in BUILDERS:
        variant = path_component(stored_name.removeprefix(f"{data.name}/").partition("/")[0], "the data")
    builder = _make_builder(data, None, variant)
    return builder if builder.info.full_name == stored_name and tfds_sets.is_prepared(builder) else None


def _make_builder(
    data: DataConfig, progress: Progress | None, variant: str | None = None
) -> tfds.core.DatasetBuilder:
    if data.name not in BUILDERS:
        return tfds_sets.find(data, other_names=list(BUILDERS))
    root = local_path(data.data_dir or tfds.core.constants.DATA_DIR, "data.data_dir")
    with reporting_damage(root / data.name):
        builder = BUILDERS[data.name](data, progress, variant)
        _ = builder.info.metadata  # read here, because TFDS reads it lazily
        return builder
