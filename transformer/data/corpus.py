"""A data set in pieces: prepared once, kept on disk, read through memory maps."""

import contextlib
import dataclasses
import itertools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from transformer.config import DataConfig, UserError
from transformer.data.builders import BUILDERS, prepared
from transformer.data.progress import LogLines, Progress
from transformer.data.records import Pair, read_chunks
from transformer.data.tokenizer import Tokenizer
from transformer.disk import locked

log = logging.getLogger(__name__)

SIDES = ("source", "target")
VOCABULARY_PAIRS = 1_000_000  # at most, to learn the vocabulary from


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
    folder: Path | None = None  # that the arrays are mapped from

    def __reduce__(self):
        """To a process that assembles batches goes the folder's name, not what is in it."""
        if self.folder is None:
            return Split, (self.source, self.target, self.characters)
        return load_split, (self.folder,)

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def lengths(self) -> np.ndarray:
        """Pieces of the longer side of each pair."""
        return np.maximum(self.source.lengths, self.target.lengths)

    @property
    def longest(self) -> tuple[int, int]:
        """Pieces in the longest source and the longest target."""
        return int(self.source.lengths.max()), int(self.target.lengths.max())


def load_split(folder: Path) -> Split:
    """Maps what `Corpus` wrote: a pair is read when it is asked for."""
    array = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    source, target = (Side(array[side], array[f"{side}_offsets"]) for side in SIDES)
    return Split(source, target, array["characters"], folder)


class Corpus:
    """A prepared data set and its vocabulary."""

    def __init__(
        self, data: DataConfig, tokenizer: Tokenizer | None = None, progress: Progress | None = None
    ):
        """Prepares what is missing: the data set, the vocabulary (training split only), the pieces.

        Args:
          data: which data set, languages and vocabulary.
          tokenizer: the vocabulary to use, of an earlier run; None: the one that `data` describes.
          progress: is told of work that takes long; None: the log is.
        """
        self._data = data
        self._progress = progress or LogLines()
        self._builder = prepared(data, self._progress)
        self._parts = _parts(data, self._builder.info)
        self.folder = Path(self._builder.data_dir)
        self._pieces = self.folder / "pieces"
        self._pieces.mkdir(exist_ok=True)
        self.tokenizer = tokenizer or self._tokenizer()

    @property
    def identity(self) -> str:
        """Names the data's content and preparation; runs on different data have different ones."""
        chosen = [f"{name}={part}" for name, part in self._parts.items() if name != part]
        return " ".join([self._builder.info.full_name, *chosen])

    @property
    def splits(self) -> list[str]:
        """Names of the splits there are."""
        return list(self._parts)

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """The raw source and target sentences of a split, all in memory."""
        pairs = itertools.chain.from_iterable(self._chunks(split, f"reading {split}"))
        sources, targets = zip(*pairs, strict=True)
        return list(sources), list(targets)

    def split(self, name: str) -> Split:
        """The pieces of a split.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        self._known(name)
        languages = f"{self._data.source}-{self._data.target}"
        folder = self._pieces / self.tokenizer.sha256[:16] / languages / self._parts[name]
        if not folder.exists():
            with locked(self._pieces):
                if not folder.exists():
                    self._write(name, folder)
        return load_split(folder)

    def size(self, split: str) -> int:
        """Pairs in a split."""
        return self._builder.info.splits[self._parts[split]].num_examples

    def _known(self, split):
        if split not in self._parts:
            hint = f"; set data.{split} to a part of one: train[99%:]"
            if self._data.name in BUILDERS:
                hint = f"; data.{split} names the files of one" if self._data.name == "parallel_text" else ""
            raise UserError(
                f"{self._data.name} has no split {split!r}; it has {', '.join(self.splits)}"
                + (hint if split in ("train", "validation", "test") else "")
            )
        if not self.size(split):
            raise UserError(f"split {split!r} of {self._data.name} is empty")

    def _chunks(self, split: str, what: str, sample: np.ndarray | None = None) -> Iterator[list[Pair]]:
        self._known(split)
        languages = (self._data.source, self._data.target)
        return read_chunks(self._builder, self._parts[split], languages, self._progress, what, sample)

    def _tokenizer(self) -> Tokenizer:
        kind, size, part = self._data.tokenizer, self._data.vocab_size, self._parts.get("train", "train")
        path = self._pieces / (f"{kind}-{size}.model" if part == "train" else f"{kind}-{size}.{part}.model")
        if path.exists():
            return Tokenizer.load(path)
        with locked(self._pieces):
            if not path.exists():
                tokenizer = Tokenizer.train(self._vocabulary_texts(), kind, size)
                partial = path.with_name(path.name + ".partial")
                partial.write_bytes(tokenizer.model)
                partial.rename(path)
        return Tokenizer.load(path)

    def _vocabulary_texts(self) -> Iterator[str]:
        """Both sides of the training pairs; of more than `VOCABULARY_PAIRS`, of as many drawn at random.

        The draw is the same every time. SentencePiece holds all it is given in memory.
        """
        self._known("train")
        pairs, sample = self.size("train"), None
        if pairs > VOCABULARY_PAIRS:
            draw = np.random.default_rng(0).choice(pairs, VOCABULARY_PAIRS, replace=False)
            sample = np.sort(draw)
        drawn = "" if sample is None else f" from {len(sample):,} of {pairs:,} pairs, drawn at random"
        log.info("learning %d %s pieces%s", self._data.vocab_size, self._data.tokenizer, drawn)
        for chunk in self._chunks("train", "reading for the vocabulary", sample):
            for pair in chunk:
                yield from pair

    def _write(self, split: str, folder: Path) -> None:
        """Cuts a split into pieces; the folder is there once it is whole."""
        log.info("tokenising split %s", split)
        dtype = np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.int32
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with contextlib.ExitStack() as stack:

            def grow(name, dtype):
                return stack.enter_context(contextlib.closing(GrowingArray(partial / f"{name}.npy", dtype)))

            pieces = {side: grow(side, dtype) for side in SIDES}
            offsets = {side: grow(f"{side}_offsets", np.int64) for side in SIDES}
            characters = grow("characters", np.int32)
            for side in SIDES:
                offsets[side].append([0])
            for pairs in self._chunks(split, f"tokenising {split}"):
                for side, texts in zip(SIDES, zip(*pairs, strict=True), strict=True):
                    encoded = self.tokenizer.encode_arrays(texts)
                    offsets[side].append(len(pieces[side]) + np.cumsum([len(one) for one in encoded]))
                    pieces[side].append(np.concatenate(encoded))
                characters.append([len(target) for _, target in pairs])
        partial.rename(folder)


class GrowingArray:
    """A .npy file of one axis that is appended to; its header gets the length when it is closed."""

    def __init__(self, path: Path, dtype: npt.DTypeLike):
        self._dtype, self._length = np.dtype(dtype), 0
        self._file = open(path, "wb")  # noqa: SIM115
        self._write_header()

    def __len__(self) -> int:
        return self._length

    def append(self, values: npt.ArrayLike) -> None:
        """Writes values after those that are there."""
        array = np.asarray(values, self._dtype)
        self._file.write(array.tobytes())
        self._length += len(array)

    def close(self) -> None:
        """Completes the file."""
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self):
        """NumPy leaves room in it for the first axis to grow."""
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._length,),
        }
        np.lib.format.write_array_header_1_0(self._file, description)


def _parts(data: DataConfig, info: tfds.core.DatasetInfo) -> dict[str, str]:
    """What each split is read from: the split of that name, or the part of a TFDS set that is configured."""
    parts = {name: name for name in info.splits}
    if data.name in BUILDERS:
        return parts
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    parts |= {name: part for name, part in given.items() if part is not None}
    shown = {}
    for name, part in parts.items():
        if name not in given:
            continue
        try:
            shown[name] = info.splits[part].file_instructions
        except Exception as error:  # TFDS parses it
            own = f"a split of {data.name} ({', '.join(info.splits)})"
            raise UserError(
                f"data.{name} is {part!r}; it must be {own} or a part of one: train[99%:]"
            ) from error
    for one, other in itertools.combinations(shown, 2):
        if any(_overlap(*files) for files in itertools.product(shown[one], shown[other])):
            raise UserError(f"data.{one} is {parts[one]!r} and data.{other} {parts[other]!r}; they overlap")
    return parts


def _overlap(one, other):
    """Whether two pieces of record files share a record."""
    return one.filename == other.filename and max(one.skip, other.skip) < min(
        one.skip + one.take, other.skip + other.take
    )
