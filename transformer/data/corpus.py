"""A data set in pieces: prepared once, kept on disk, read through memory maps."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from transformer.config import DataConfig, UserError
from transformer.data.builders import locked, prepared
from transformer.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Side:
    """The sentences of one language: all pieces in one array, sentence i at offsets[i]:offsets[i + 1]."""

    pieces: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Pieces of each sentence, EOS included."""
        return np.diff(self.offsets)

    def __getitem__(self, index: int | np.integer) -> np.ndarray:
        return self.pieces[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class Split:
    """The sentence pairs of one split, in the data set's own order."""

    source: Side
    target: Side
    characters: np.ndarray  # of each raw target sentence

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def longest(self) -> int:
        """Pieces in the longest sentence of either side."""
        return int(max(self.source.lengths.max(), self.target.lengths.max()))


class Corpus:
    """A prepared data set and its vocabulary."""

    def __init__(self, data: DataConfig, tokenizer: Tokenizer | None = None):
        """Prepares what is missing: the data set, the vocabulary (training split only), the pieces.

        Args:
          data: which data set, languages and vocabulary.
          tokenizer: the vocabulary to use, of an earlier run; None: the one that `data` describes.
        """
        self._data = data
        self._builder = prepared(data)
        sides = set(self._builder.info.features)
        for field, side in (("data.source", data.source), ("data.target", data.target)):
            if side not in sides:
                raise UserError(f"{field} is {side!r}; {data.name} has {', '.join(sorted(sides))}")
        self._folder = Path(self._builder.data_dir) / "pieces"
        self._folder.mkdir(exist_ok=True)
        self.tokenizer = tokenizer or self._tokenizer()

    @property
    def identity(self) -> str:
        """Names the data's content and preparation; runs on different data have different ones."""
        return self._builder.info.full_name

    @property
    def splits(self) -> list[str]:
        """Names of the splits there are."""
        return list(self._builder.info.splits)

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """The raw source and target sentences of a split."""
        sources, targets = zip(*self._pairs(split), strict=True)
        return list(sources), list(targets)

    def split(self, name: str) -> Split:
        """The pieces of a split.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        self._known(name)
        folder = self._folder / self.tokenizer.sha256[:16] / f"{self._data.source}-{self._data.target}" / name
        with locked(self._folder):
            if not folder.exists():
                self._write(name, folder)
        array = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        return Split(
            source=Side(array["source"], array["source_offsets"]),
            target=Side(array["target"], array["target_offsets"]),
            characters=array["characters"],
        )

    def _known(self, split):
        if split not in self.splits:
            raise UserError(f"{self._data.name} has no split {split!r}; it has {', '.join(self.splits)}")
        if not self._builder.info.splits[split].num_examples:
            raise UserError(f"split {split!r} of {self._data.name} is empty")

    def _pairs(self, split: str) -> Iterator[tuple[str, str]]:
        for pairs in self._chunks(split):
            yield from pairs

    def _chunks(self, split: str, size: int = 4096) -> Iterator[list[tuple[str, str]]]:
        """The raw pairs of a split, many at a time: one by one they cost four times as much to read."""
        self._known(split)
        records = self._builder.as_data_source(split=split)
        for first in range(0, len(records), size):
            chunk = records.__getitems__(list(range(first, min(first + size, len(records)))))
            yield [(_text(one[self._data.source]), _text(one[self._data.target])) for one in chunk]

    def _tokenizer(self) -> Tokenizer:
        path = self._folder / f"{self._data.tokenizer}-{self._data.vocab_size}.model"
        with locked(self._folder):
            if not path.exists():
                log.info("learning %d %s pieces", self._data.vocab_size, self._data.tokenizer)
                texts = (text for pair in self._pairs("train") for text in pair)
                tokenizer = Tokenizer.train(texts, self._data.tokenizer, self._data.vocab_size)
                partial = path.with_suffix(".partial")
                partial.write_bytes(tokenizer.model)
                partial.rename(path)
        return Tokenizer.load(path)

    def _write(self, split: str, folder: Path) -> None:
        log.info("cutting split %s into pieces", split)
        dtype = np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.int32
        pieces: dict[str, list[np.ndarray]] = {"source": [], "target": []}
        characters = []
        for pairs in self._chunks(split):
            for side, texts in zip(pieces, zip(*pairs, strict=True), strict=True):
                pieces[side] += [np.array(one, dtype) for one in self.tokenizer.encode_all(texts)]
            characters += [len(target) for _, target in pairs]
        partial = folder.with_name(f"{split}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for side, sentences in pieces.items():
            np.save(partial / f"{side}.npy", np.concatenate(sentences))
            offsets = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
            np.save(partial / f"{side}_offsets.npy", offsets)
        np.save(partial / "characters.npy", np.array(characters, np.int32))
        partial.rename(folder)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")
