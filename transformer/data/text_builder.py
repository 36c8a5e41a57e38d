"""Base class of the data sets that this library prepares: TFDS builders that need no TensorFlow."""

import abc
from collections.abc import Collection, Iterable
from typing import ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from transformer.config import DataConfig, UserError
from transformer.data.options import Options, read_options
from transformer.data.progress import LogLines, Progress
from transformer.data.records import DOCUMENT, Pair, Record, kind_of, write_split


class _LocalInfo(tfds.core.DatasetInfo):
    """The description of a data set that TFDS does not publish."""

    def initialize_from_bucket(self):
        """Does nothing. TFDS would create a temporary folder for the published description, and leave it."""


class TextBuilder(FileReaderBuilder, skip_registration=True):
    """TFDS builder of records of texts, stored as array_record in the order in which `records` yields them.

    A data set is a subclass of `PairBuilder` or `DocumentBuilder`, and is registered in `builders.BUILDERS`.
    The subclass sets `options_type` to the dataclass of its options, a subclass of `Options`. If it sets
    `SPLITS` to the names of its splits, a wrong name is refused before the data is prepared.

    Attributes:
      data: the config of the data set.
      options: an instance of `options_type`.
    """

    VERSION = tfds.core.Version("2.0.0")
    options_type: ClassVar[type[Options]] = Options
    SPLITS: ClassVar[Collection[str]] = ()

    def __init__(self, data: DataConfig, progress: Progress | None = None, variant: str | None = None):
        """Makes the builder, but prepares no data.

        Args:
          data: the config of the data set.
          progress: receives progress reports; if None, they are logged.
          variant: the variant, if the data is prepared already; if None, it is computed from the raw text.

        Raises:
          UserError: an option that cannot be used.
        """
        self.data = data
        self.options = read_options(self.options_type, data, self.name)
        self._progress = progress or LogLines()
        super().__init__(
            data_dir=data.data_dir,
            config=tfds.core.BuilderConfig(name=variant or self.variant()),
            file_format="array_record",
        )

    @abc.abstractmethod
    def variant(self) -> str:
        """Returns the name of the prepared content. Different contents must have different names."""

    @property
    @abc.abstractmethod
    def columns(self) -> Record:
        """Names of the columns."""

    @abc.abstractmethod
    def records(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable[Record]]:
        """Returns the records of each split, with one text per column."""

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self, features=self._features(), disable_shuffling=True, metadata=tfds.core.MetadataDict()
        )

    def _features(self) -> tfds.features.FeaturesDict:
        """Returns the description of a record for TFDS."""
        return tfds.features.FeaturesDict({column: tfds.features.Text() for column in self.columns})

    def _download_and_prepare(self, dl_manager, download_config):
        splits, contents = [], {}
        for name, records in self.records(dl_manager).items():
            split, contents[name] = write_split(self, name, self.columns, records, self._progress)
            splits.append(split)
            if not splits[-1].num_examples:
                kind = kind_of(self.columns).removesuffix("s")
                raise UserError(f"split {name!r} of {self.name} is empty; give it at least one {kind}")
        self.info.set_splits(tfds.core.SplitDict(splits))
        self.info.metadata["content"] = contents


class PairBuilder(TextBuilder, skip_registration=True):
    """Base class of the data sets of sentence pairs. A subclass implements `variant` and `pairs`."""

    @property
    def columns(self) -> Pair:
        """The two languages."""
        return self.data.source, self.data.target

    @abc.abstractmethod
    def pairs(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable[Pair]]:
        """Returns the (source, target) sentences of each split."""

    def records(self, dl_manager):
        return self.pairs(dl_manager)

    def _features(self):
        return tfds.features.Translation(languages=self.columns)


class DocumentBuilder(TextBuilder, skip_registration=True):
    """Base class of the data sets of documents. A subclass implements `variant` and `documents`."""

    columns: ClassVar[Record] = DOCUMENT

    @abc.abstractmethod
    def documents(self) -> dict[str, Iterable[str]]:
        """Returns the texts of each split."""

    def records(self, dl_manager):
        return {split: ((text,) for text in texts) for split, texts in self.documents().items()}
