"""The texts of a prepared data set, read from disk and checked."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from transformer.config import DataConfig, UserError
from transformer.data import tfds_sets
from transformer.data.builders import BUILDERS, columns_of, open_prepared, prepare, reporting_damage
from transformer.data.progress import LogLines, Progress
from transformer.data.records import ContentDigest, Record, read_chunks


class PreparedTexts:
    """The raw texts of a prepared data set.

    Attributes:
      data: the config of the data set.
      columns: names of the columns: the two languages of sentence pairs, or `text`.
      folder: the folder of the prepared data.
      info: the description of the data set by TFDS.
      parts: maps each split to the part of the data set from which it is read.
    """

    def __init__(self, data: DataConfig, progress: Progress | None = None, prepared: str | None = None):
        """Opens a data set, and prepares it unless this was done before.

        Args:
          data: the config of the data set.
          progress: receives progress reports; if None, they are logged.
          prepared: `name` of the data, if it was prepared earlier. The raw text is then not read.

        Raises:
          UserError: data that cannot be used; see `builders.prepare` and `builders.open_prepared`.
        """
        self.data = data
        self._progress = progress or LogLines()
        if prepared is None:
            self._builder = prepare(data, self._progress)
        else:
            self._builder = open_prepared(data, prepared)
        self.info = self._builder.info
        self.parts = (
            {name: name for name in self.info.splits}
            if data.name in BUILDERS
            else tfds_sets.split_parts(data, self.info)
        )
        self.columns = columns_of(data, self._builder)
        self.folder = Path(self._builder.data_dir)

    @property
    def name(self) -> str:
        """Name of the prepared data; see `builders.data_name`."""
        return self.info.full_name

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self.parts)

    def size(self, split: str) -> int:
        """Returns the number of records in a split."""
        return self.info.splits[self.parts[split]].num_examples

    def texts(self, split: str) -> tuple[list[str], ...]:
        """Returns the raw texts of a split, in memory: one list per column.

        Raises:
          UserError: the split does not exist or is empty, or the data is damaged.
        """
        records = itertools.chain.from_iterable(self.chunks(split, f"reading {split}"))
        return tuple(map(list, zip(*records, strict=True)))

    def check_split(self, split: str) -> None:
        """Checks that a split exists and is not empty.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        if split not in self.parts:
            advice = ""
            has_folder = self.data.options.get("folder") is not None
            is_option = split in ("train", "validation", "test") and split in self.data.options
            if is_option and not has_folder:
                is_own = self.data.name in BUILDERS
                text = "the files of this split" if is_own else "a part of a split, such as train[99%:]"
                advice = f", or train a new run with data.options.{split} set to {text}"
            known = ", ".join(self.splits)
            raise UserError(f"{self.data.name} has no split {split!r}; choose {known}{advice}")
        if not self.size(split):
            raise UserError(f"split {split!r} of {self.data.name} is empty; choose another split")

    def chunks(
        self,
        split: str,
        activity: str,
        content: ContentDigest | None = None,
        sample: Int[np.ndarray, "_"] | None = None,
    ) -> Iterator[list[Record]]:
        """Yields the records of a split, in lists. If all records are read, checks their digest.

        Args:
          split: name of the split.
          activity: the purpose of reading, for the progress reports.
          content: a digest that is updated with the records; None if the caller needs none.
          sample: indices of the records to read; if None, all records are read.

        Raises:
          UserError: the split does not exist or is empty, or the records are damaged.
        """
        self.check_split(split)
        content = content or ContentDigest()
        with reporting_damage(self.folder):
            for chunk in read_chunks(
                self._builder, self.parts[split], self.columns, self._progress, activity, sample
            ):
                content.update(chunk)
                yield chunk
        stored = self.stored_content(split)
        if sample is None and stored is not None and content.hexdigest() != stored:
            raise UserError(
                f"the prepared split {split!r} in {self.folder} was damaged or replaced; "
                "delete the folder and run the same command again"
            )

    def stored_content(self, split: str) -> str | None:
        """Returns the digest that the builder stored when it wrote a split; None for a set of TFDS."""
        return self.info.metadata.get("content", {}).get(split) if self.data.name in BUILDERS else None
