"""A data set as tokens: prepared once, stored on disk, read through memory maps."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from transformer.config import DataConfig, UserError
from transformer.data import tfds_sets
from transformer.data.builders import BUILDERS, preparation_lock, prepare
from transformer.data.progress import LogLines, Progress
from transformer.data.records import Pair, read_chunks
from transformer.data.splits import Split, load_split, write_split
from transformer.data.tokenizer import Tokenizer
from transformer.files import atomic_folder, atomic_write

log = logging.getLogger(__name__)

VOCABULARY_PAIRS = 1_000_000  # largest number of pairs that the vocabulary is learned from


class Corpus:
    """A prepared data set and its vocabulary.

    Attributes:
      folder: the folder of the prepared data.
      tokenizer: the vocabulary, shared by both languages.
    """

    def __init__(
        self, data: DataConfig, tokenizer: Tokenizer | None = None, progress: Progress | None = None
    ):
        """Prepares the data set and learns its vocabulary from the training split.

        What already exists is reused.

        Args:
          data: the config of the data set, its languages and its vocabulary.
          tokenizer: the vocabulary of an earlier run; if None, the vocabulary that `data` describes.
          progress: receives progress reports; if None, they are logged.

        Raises:
          UserError: data that cannot be used; see `builders.prepare`.
        """
        self._data = data
        self._progress = progress or LogLines()
        self._builder = prepare(data, self._progress)
        info = self._builder.info
        # The part of the data set that each split is read from.
        self._parts = (
            {name: name for name in info.splits}
            if data.name in BUILDERS
            else tfds_sets.split_parts(data, info)
        )
        self.folder = Path(self._builder.data_dir)
        self._token_folder = self.folder / "tokens"
        self._token_folder.mkdir(exist_ok=True)
        self.tokenizer = tokenizer or self._load_tokenizer()

    @property
    def identity(self) -> str:
        """Name of the data and of its preparation. Different contents have different names."""
        chosen = [f"{name}={part}" for name, part in self._parts.items() if name != part]
        return " ".join([self._builder.info.full_name, *chosen])

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._parts)

    def size(self, split: str) -> int:
        """Returns the number of pairs in a split."""
        return self._builder.info.splits[self._parts[split]].num_examples

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """Returns the raw source and target sentences of a split, in memory.

        Raises:
          UserError: no such split, or an empty one.
        """
        pairs = itertools.chain.from_iterable(self._chunks(split, f"reading {split}"))
        sources, targets = zip(*pairs, strict=True)
        return list(sources), list(targets)

    def split(self, name: str) -> Split:
        """Returns the tokens of a split, and writes them to disk at the first use.

        Raises:
          UserError: no such split, an empty one, or a full disk.
        """
        self._check_split(name)
        languages = f"{self._data.source}-{self._data.target}"
        folder = self._token_folder / self.tokenizer.sha256[:16] / languages / self._parts[name]
        if not folder.exists():
            with preparation_lock(self._token_folder):
                if not folder.exists():
                    log.info("tokenizing split %s", name)
                    with atomic_folder(folder) as partial:
                        write_split(partial, self._chunks(name, f"tokenizing {name}"), self.tokenizer)
        return load_split(folder)

    def _check_split(self, split: str) -> None:
        if split not in self._parts:
            advice = ""
            if split in ("train", "validation", "test") and self._data.name == "parallel_text":
                advice = f", or set data.options.{split} to the files of this split"
            elif split in ("train", "validation", "test") and self._data.name not in BUILDERS:
                advice = f", or set data.options.{split} to a part of a split, such as train[99%:]"
            known = ", ".join(self.splits)
            raise UserError(f"{self._data.name} has no split {split!r}; choose {known}{advice}")
        if not self.size(split):
            raise UserError(f"split {split!r} of {self._data.name} is empty; choose another split")

    def _chunks(
        self, split: str, activity: str, sample: Int[np.ndarray, "_"] | None = None
    ) -> Iterator[list[Pair]]:
        self._check_split(split)
        languages = (self._data.source, self._data.target)
        return read_chunks(self._builder, self._parts[split], languages, self._progress, activity, sample)

    def _load_tokenizer(self) -> Tokenizer:
        """Loads the vocabulary that the config describes, and learns it at the first use."""
        kind, size, part = self._data.tokenizer, self._data.vocab_size, self._parts.get("train", "train")
        suffix = "" if part == "train" else f".{part}"
        path = self._token_folder / f"{kind}-{size}{suffix}.model"
        if not path.exists():
            with preparation_lock(self._token_folder):
                if not path.exists():
                    tokenizer = Tokenizer.train(self._vocabulary_texts(), kind, size)
                    atomic_write(path, tokenizer.model)
        return Tokenizer.load(path)

    def _vocabulary_texts(self) -> Iterator[str]:
        """Yields both sides of the training pairs, or of a random sample of `VOCABULARY_PAIRS` of them.

        SentencePiece keeps all of these sentences in memory. The sample is always the same.
        """
        self._check_split("train")
        num_pairs, sample, suffix = self.size("train"), None, ""
        if num_pairs > VOCABULARY_PAIRS:
            sample = np.sort(np.random.default_rng(0).choice(num_pairs, VOCABULARY_PAIRS, replace=False))
            suffix = f" from {len(sample):,} of {num_pairs:,} pairs, drawn at random"
        log.info("learning %d %s tokens%s", self._data.vocab_size, self._data.tokenizer, suffix)
        for chunk in self._chunks("train", "reading for the vocabulary", sample):
            for pair in chunk:
                yield from pair
