"""A data set as tokens: prepared once, stored on disk, read through memory maps."""

import collections
import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from transformer.config import DataConfig, UserError
from transformer.data import exactness, tfds_sets
from transformer.data.builders import (
    BUILDERS,
    columns_of,
    open_prepared,
    preparation_lock,
    prepare,
    reporting_damage,
)
from transformer.data.progress import LogLines, Progress
from transformer.data.records import ContentDigest, Record, kind_of, read_chunks
from transformer.data.splits import (
    DOCUMENT_SIDES,
    PAIR_SIDES,
    Split,
    load_split,
    write_split,
)
from transformer.data.tokenizer import Tokenizer
from transformer.files import atomic_folder, atomic_write, is_writable
from transformer.json_files import read_manifest, seal, write_manifest

log = logging.getLogger(__name__)

VOCABULARY_FILE = "tokenizer.model"
# The vocabulary is learned from at most this many records, and from about this many bytes of documents.
VOCABULARY_RECORDS = 1_000_000
VOCABULARY_BYTES = 200_000_000


class Corpus:
    """A prepared data set and its vocabulary.

    Attributes:
      columns: names of the columns: the two languages of sentence pairs, or `text`.
      folder: the folder of the prepared data.
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: Tokenizer | None = None,
        progress: Progress | None = None,
        prepared: str | None = None,
        run_folder: Path | None = None,
    ):
        """Opens a data set, and prepares it unless this was done before.

        Args:
          data: the config of the data set, its languages and its vocabulary.
          tokenizer: the vocabulary of an earlier run; if None, the vocabulary that `data` describes.
          progress: receives progress reports; if None, they are logged.
          prepared: `name` of the data, if it was prepared earlier. The raw text is then not read.
          run_folder: stores new tokens if the folder of the data cannot be written; None if there is no run.

        Raises:
          UserError: data that cannot be used; see `builders.prepare` and `builders.open_prepared`.
        """
        self._data = data
        self._given_tokenizer = tokenizer
        self._progress = progress or LogLines()
        if prepared is None:
            self._builder = prepare(data, self._progress)
        else:
            self._builder = open_prepared(data, prepared)
        info = self._builder.info
        # Maps each split to the part of the data set from which it is read.
        self._parts = (
            {name: name for name in info.splits}
            if data.name in BUILDERS
            else tfds_sets.split_parts(data, info)
        )
        self.columns = columns_of(data, self._builder)
        self.folder = Path(self._builder.data_dir)
        self._token_folders = [
            folder / "tokens" for folder in (self.folder, run_folder) if folder is not None
        ]
        self._opened: dict[str, Split] = {}
        self._inexact: dict[str, int] = {}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary, shared by all columns. It is learned from the training split at the first use."""
        return self._given_tokenizer or self._load_tokenizer()

    @property
    def name(self) -> str:
        """Name of the prepared data; see `builders.data_name`."""
        return self._builder.info.full_name

    @functools.cached_property
    def content(self) -> str:
        """Digest of the texts of the training and validation splits."""
        digests = {split: self._content(split) for split in ("train", "validation") if split in self._parts}
        return seal(digests)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._parts)

    @property
    def tokenized_splits(self) -> list[str]:
        """Names of the splits whose tokens are on disk."""
        return [name for name in self.splits if self._split_folder(name).exists()]

    def size(self, split: str) -> int:
        """Returns the number of records in a split."""
        return self._builder.info.splits[self._parts[split]].num_examples

    def texts(self, split: str) -> tuple[list[str], ...]:
        """Returns the raw texts of a split, in memory: one list per column.

        Raises:
          UserError: the split does not exist or is empty, or the data is damaged.
        """
        records = itertools.chain.from_iterable(self._chunks(split, f"reading {split}"))
        return tuple(map(list, zip(*records, strict=True)))

    def split(self, name: str) -> Split:
        """Returns the tokens of a split, and writes them to disk at the first use.

        Raises:
          UserError: the split does not exist or is empty, the data is damaged, or the disk is full.
        """
        self.check_split(name)
        folder = self._split_folder(name)
        if not folder.exists():
            with preparation_lock(self._new_token_folder):
                if not folder.exists():
                    log.info("tokenizing split %s", name)
                    content = ContentDigest()
                    with atomic_folder(folder) as partial:
                        chunks = self._chunks(name, f"tokenizing {name}", content)
                        write_split(partial, chunks, self.tokenizer, self._sides)
                        values = self._split_origin(name) | self._compare_decoded(name, partial)
                        write_manifest(partial, text=content.hexdigest(), **values)
        if name not in self._opened:
            stored = self._stored_content(name)
            values = _read_origin(folder, **self._split_origin(name), **({"text": stored} if stored else {}))
            self._opened[name], self._inexact[name] = load_split(folder), values.get("inexact", 0)
            if self._inexact[name]:
                log.warning("%s", exactness.describe(name, self.size(name), values))
        return self._opened[name]

    def inexact(self, split: str) -> int:
        """Returns the number of documents that differ from the texts that their tokens decode to.

        Sentence pairs are not compared; their number is 0.

        Raises:
          UserError: see `split`.
        """
        self.split(split)
        return self._inexact[split]

    def _compare_decoded(self, name: str, folder: Path) -> dict[str, Any]:
        """Returns the manifest entries of `exactness.compare` for documents, and none for pairs."""
        if kind_of(self.columns) == "pairs":
            return {}
        chunks = self._chunks(name, f"checking the tokens of {name}")
        texts = (text for chunk in chunks for (text,) in chunk)
        return exactness.compare(load_split(folder), texts, self.tokenizer)

    def check_split(self, split: str) -> None:
        """Checks that a split exists and is not empty.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        if split not in self._parts:
            advice, is_standard = "", split in ("train", "validation", "test")
            has_folder = self._data.options.get("folder") is not None
            if is_standard and self._data.name in ("parallel_text", "text_files") and not has_folder:
                advice = f", or set data.options.{split} to the files of this split"
            elif is_standard and self._data.name not in BUILDERS:
                advice = f", or set data.options.{split} to a part of a split, such as train[99%:]"
            known = ", ".join(self.splits)
            raise UserError(f"{self._data.name} has no split {split!r}; choose {known}{advice}")
        if not self.size(split):
            raise UserError(f"split {split!r} of {self._data.name} is empty; choose another split")

    def _split_folder(self, name: str) -> Path:
        return self._find(Path(self.tokenizer.sha256[:16], "-".join(self.columns), self._parts[name]))

    @property
    def _sides(self) -> Sequence[str]:
        return PAIR_SIDES if kind_of(self.columns) == "pairs" else DOCUMENT_SIDES

    @functools.cached_property
    def _new_token_folder(self) -> Path:
        """The folder for new tokens: that of the data if it can be written, otherwise that of the run."""
        return next(filter(is_writable, self._token_folders), self._token_folders[0])

    def _find(self, path: Path) -> Path:
        """Returns where a vocabulary or a split is, or where it will be written."""
        places = [folder / path for folder in self._token_folders]
        return next((place for place in places if place.exists()), self._new_token_folder / path)

    def _split_origin(self, name: str) -> dict[str, str]:
        """Returns the manifest entries that identify the origin of a split's tokens, except for the text."""
        return {
            "vocabulary": self.tokenizer.sha256,
            "languages": "-".join(self.columns),
            "split": self._parts[name],
        }

    def _stored_content(self, split: str) -> str | None:
        """Returns the digest that the builder stored when it wrote a split; None for a set of TFDS."""
        return self._builder.info.metadata.get("content", {}).get(split) if self._is_ours else None

    def _content(self, split: str) -> str:
        """Returns the content digest of a split. Reads the split if no digest is stored."""
        if stored := self._stored_content(split):
            return stored
        if (folder := self._split_folder(split)).exists():
            return _read_origin(folder, **self._split_origin(split))["text"]
        content = ContentDigest()
        collections.deque(self._chunks(split, f"reading {split} to identify it", content), maxlen=0)
        return content.hexdigest()

    @property
    def _is_ours(self) -> bool:
        return self._data.name in BUILDERS

    def _chunks(
        self,
        split: str,
        activity: str,
        content: ContentDigest | None = None,
        sample: Int[np.ndarray, "_"] | None = None,
    ) -> Iterator[list[Record]]:
        """Yields the records of a split. If all records are read, checks their digest.

        Raises:
          UserError: the records are damaged.
        """
        self.check_split(split)
        content = content or ContentDigest()
        with reporting_damage(self.folder):
            for chunk in read_chunks(
                self._builder, self._parts[split], self.columns, self._progress, activity, sample
            ):
                content.update(chunk)
                yield chunk
        stored = self._stored_content(split)
        if sample is None and stored is not None and content.hexdigest() != stored:
            raise UserError(
                f"the prepared split {split!r} in {self.folder} was damaged or replaced; "
                "delete the folder and run the same command again"
            )

    def _load_tokenizer(self) -> Tokenizer:
        """Loads the vocabulary that the config describes, and learns it at the first use."""
        kind, size, part = self._data.tokenizer, self._data.vocab_size, self._parts.get("train", "train")
        exact = kind_of(self.columns) == "documents"
        suffix = ("-exact" if exact else "") + ("-bytes" if self._data.byte_fallback else "")
        suffix += "" if part == "train" else f".{part}"
        folder = self._find(Path(f"{kind}-{size}{suffix}"))
        origin = {"text": self._stored_content("train"), "settings": folder.name}
        if not folder.exists():
            with preparation_lock(self._new_token_folder):
                if not folder.exists():
                    tokenizer = Tokenizer.train(
                        self._vocabulary_texts(), kind, size, self._data.byte_fallback, exact
                    )
                    with atomic_folder(folder) as partial:
                        atomic_write(partial / VOCABULARY_FILE, tokenizer.model)
                        write_manifest(partial, **origin)
        _read_origin(folder, **origin)
        return Tokenizer.load(folder / VOCABULARY_FILE)

    def _vocabulary_texts(self) -> Iterator[str]:
        """Yields the texts of the training records, or of a random sample of them.

        SentencePiece keeps all of these texts in memory. The sample is always the same.
        """
        self.check_split("train")
        num_records, limit, sample, suffix = self.size("train"), self._vocabulary_limit(), None, ""
        if num_records > limit:
            sample = np.sort(np.random.default_rng(0).choice(num_records, limit, replace=False))
            suffix = f" from {len(sample):,} of {num_records:,} {kind_of(self.columns)}, drawn at random"
        log.info("learning %d %s tokens%s", self._data.vocab_size, self._data.tokenizer, suffix)
        for chunk in self._chunks("train", "reading for the vocabulary", sample=sample):
            for record in chunk:
                yield from record

    def _vocabulary_limit(self) -> int:
        """Returns the largest number of records that the vocabulary is learned from."""
        if kind_of(self.columns) == "pairs":
            return VOCABULARY_RECORDS
        # The mean size is that of all splits, because TFDS does not know the size of a part of a split.
        splits = self._builder.info.splits.values()
        num_bytes = sum(split.num_bytes for split in splits)
        num_documents = sum(split.num_examples for split in splits)
        return min(VOCABULARY_RECORDS, max(1, VOCABULARY_BYTES * num_documents // max(1, num_bytes)))


def _read_origin(folder: Path, **origin: str | None) -> dict[str, Any]:
    """Returns the values of a manifest, and checks the entries that identify the origin of the folder.

    Raises:
      UserError: the folder has a different origin, or is damaged.
    """
    values = read_manifest(folder)
    for name, expected in origin.items():
        if values.get(name) != expected:
            raise UserError(
                f"{folder} does not match the current data and config (mismatch: {name}); "
                "delete the folder and run the same command again"
            )
    return values
