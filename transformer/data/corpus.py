"""A data set as tokens: prepared once, stored on disk, read through memory maps."""

import collections
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import DataConfig, UserError
from transformer.data import exactness
from transformer.data.builders import preparation_lock
from transformer.data.prepared_texts import PreparedTexts
from transformer.data.progress import Progress
from transformer.data.records import ContentDigest, kind_of
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


class Corpus(PreparedTexts):
    """A prepared data set with its vocabulary and its tokens."""

    def __init__(
        self,
        data: DataConfig,
        tokenizer: Tokenizer | None = None,
        progress: Progress | None = None,
        prepared: str | None = None,
        run_folder: Path | None = None,
    ):
        """Opens a data set, and prepares it unless this was done before; see `PreparedTexts`.

        Args:
          data: the config of the data set, its languages and its vocabulary.
          tokenizer: the vocabulary of an earlier run; if None, the vocabulary that `data` describes.
          progress: receives progress reports; if None, they are logged.
          prepared: `name` of the data, if it was prepared earlier.
          run_folder: stores new tokens if the folder of the data cannot be written; None if there is no run.

        Raises:
          UserError: data that cannot be used.
        """
        super().__init__(data, progress, prepared)
        self._given_tokenizer = tokenizer
        self._token_folders = [
            folder / "tokens" for folder in (self.folder, run_folder) if folder is not None
        ]
        self._opened: dict[str, Split] = {}
        self._inexact: dict[str, int] = {}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary, shared by all columns. It is learned from the training split at the first use."""
        return self._given_tokenizer or self._load_tokenizer()

    @functools.cached_property
    def content(self) -> str:
        """Digest of the texts of the training and validation splits."""
        digests = {split: self._content(split) for split in ("train", "validation") if split in self.parts}
        return seal(digests)

    @property
    def tokenized_splits(self) -> list[str]:
        """Names of the splits whose tokens are on disk."""
        return [name for name in self.splits if self._split_folder(name).exists()]

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
                        chunks = self.chunks(name, f"tokenizing {name}", content)
                        write_split(partial, chunks, self.tokenizer, self._sides)
                        values = self._split_origin(name) | self._compare_decoded(name, partial)
                        write_manifest(partial, text=content.hexdigest(), **values)
        if name not in self._opened:
            stored = self.stored_content(name)
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
        chunks = self.chunks(name, f"checking the tokens of {name}")
        texts = (text for chunk in chunks for (text,) in chunk)
        return exactness.compare(load_split(folder), texts, self.tokenizer)

    def _split_folder(self, name: str) -> Path:
        return self._find(Path(self.tokenizer.sha256[:16], "-".join(self.columns), self.parts[name]))

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
            "split": self.parts[name],
        }

    def _content(self, split: str) -> str:
        """Returns the content digest of a split. Reads the split if no digest is stored."""
        if stored := self.stored_content(split):
            return stored
        if (folder := self._split_folder(split)).exists():
            return _read_origin(folder, **self._split_origin(split))["text"]
        content = ContentDigest()
        collections.deque(self.chunks(split, f"reading {split} to identify it", content), maxlen=0)
        return content.hexdigest()

    def _load_tokenizer(self) -> Tokenizer:
        """Loads the vocabulary that the config describes, and learns it at the first use."""
        kind, size, part = self.data.tokenizer, self.data.vocab_size, self.parts.get("train", "train")
        exact = kind_of(self.columns) == "documents"
        suffix = ("-exact" if exact else "") + ("-bytes" if self.data.byte_fallback else "")
        suffix += "" if part == "train" else f".{part}"
        folder = self._find(Path(f"{kind}-{size}{suffix}"))
        origin = {"text": self.stored_content("train"), "settings": folder.name}
        if not folder.exists():
            with preparation_lock(self._new_token_folder):
                if not folder.exists():
                    tokenizer = Tokenizer.train(
                        self._vocabulary_texts(), kind, size, self.data.byte_fallback, exact
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
        log.info("learning %d %s tokens%s", self.data.vocab_size, self.data.tokenizer, suffix)
        for chunk in self.chunks("train", "reading for the vocabulary", sample=sample):
            for record in chunk:
                yield from record

    def _vocabulary_limit(self) -> int:
        """Returns the largest number of records that the vocabulary is learned from."""
        if kind_of(self.columns) == "pairs":
            return VOCABULARY_RECORDS
        # The mean size is that of all splits, because TFDS does not know the size of a part of a split.
        splits = self.info.splits.values()
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
