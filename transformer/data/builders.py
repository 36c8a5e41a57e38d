"""Data sets: names, options and preparation. A name that is not in `BUILDERS` is a data set of TFDS.

To add a data set, write a subclass of `PairBuilder` and of `Options`, and add the builder to `BUILDERS`.
"""

import contextlib
import dataclasses
import io
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data import tfds_sets
from transformer.data.multi30k import Multi30k
from transformer.data.number_words import NumberWords
from transformer.data.options import Options, read_options
from transformer.data.pair_builder import PairBuilder
from transformer.data.parallel_text import ParallelText
from transformer.data.progress import Progress
from transformer.files import full_disk, lock

log = logging.getLogger(__name__)

BUILDERS: dict[str, type[PairBuilder]] = {
    "number_words": NumberWords,
    "multi30k": Multi30k,
    "parallel_text": ParallelText,
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
    """Returns the builder of a data set. Prepares the data as array_record, unless this was done before.

    Args:
      data: the config of the data set.
      progress: receives progress reports; if None, they are logged.

    Raises:
      UserError: an unknown data set, an option or file that cannot be used, a full disk, or a set of TFDS
        that cannot be prepared on this machine.
    """
    builder = _make_builder(data, progress)
    if not (builder.is_prepared() and builder.info.splits):
        folder = Path(builder.data_dir).parent
        with preparation_lock(folder), contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            if isinstance(builder, PairBuilder):
                # A killed process left these; no other process prepares here while this one has the lock.
                for partial in folder.glob("incomplete.*"):
                    shutil.rmtree(partial)
                builder.download_and_prepare()
            else:
                tfds_sets.prepare(builder)
        # The first builder does not notice data that another process has prepared in the meantime.
        builder = _make_builder(data, progress)
    if isinstance(builder, PairBuilder) and "report" in builder.info.metadata:
        log.info(builder.info.metadata["report"])
    return builder


@contextlib.contextmanager
def preparation_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time prepare data in a folder; other processes wait.

    Raises:
      UserError: the folder cannot be created, or the disk is full.
    """
    with full_disk(folder, " or set data.data_dir, then run the same command again"), lock(folder, wait=True):
        yield


def _make_builder(data: DataConfig, progress: Progress | None) -> tfds.core.DatasetBuilder:
    if data.name in BUILDERS:
        return BUILDERS[data.name](data, progress)
    return tfds_sets.find(data, other_names=list(BUILDERS))
