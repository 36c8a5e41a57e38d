"""Splits as arrays of tokens, stored on disk and read through memory maps."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Int, Integer

from transformer.data.tokenizer import Tokenizer

SIDES = ("source", "target")


@dataclasses.dataclass(frozen=True)
class Side:
    """The sentences of one language.

    Attributes:
      tokens: the tokens of all sentences. Sentence i is tokens[offsets[i]:offsets[i + 1]].
      offsets: the start of each sentence in `tokens`, and the end of the last sentence.
    """

    tokens: Integer[np.ndarray, "tokens"]
    offsets: Int[np.ndarray, "offsets"]

    @property
    def lengths(self) -> Int[np.ndarray, "sentences"]:
        """Tokens of each sentence, EOS included."""
        return np.diff(self.offsets)

    def __getitem__(self, index: int | np.integer) -> Integer[np.ndarray, "_"]:
        """Returns the tokens of a sentence."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class Split:
    """The sentence pairs of a split, in the order of the data set.

    Attributes:
      source: the source sentences.
      target: the target sentences.
      characters: length of each raw target sentence, in characters.
      folder: the folder that the arrays are mapped from; None if the arrays are in memory.
    """

    source: Side
    target: Side
    characters: Int[np.ndarray, "pairs"]
    folder: Path | None = None

    def __reduce__(self):
        """Pickles the path of the folder, so that processes that assemble batches map the same files."""
        if self.folder is None:
            return Split, (self.source, self.target, self.characters)
        return load_split, (self.folder,)

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def lengths(self) -> Int[np.ndarray, "pairs"]:
        """Tokens of the longer side of each pair."""
        return np.maximum(self.source.lengths, self.target.lengths)

    @property
    def side_lengths(self) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]:
        """Tokens of each source and of each target."""
        return self.source.lengths, self.target.lengths


def encode_pairs(sources: Sequence[str], targets: Sequence[str], tokenizer: Tokenizer) -> Split:
    """Returns the tokens of sentence pairs, in memory."""
    sides = []
    for texts in (sources, targets):
        sentences = tokenizer.encode_arrays(texts)
        sides.append(Side(np.concatenate(sentences), np.cumsum([0, *map(len, sentences)])))
    return Split(*sides, np.array([len(target) for target in targets]))


def load_split(folder: Path) -> Split:
    """Memory-maps the files that `write_split` wrote. A pair is read when it is used."""
    arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
    source, target = (Side(arrays[side], arrays[f"{side}_offsets"]) for side in SIDES)
    return Split(source, target, arrays["characters"], folder)


def write_split(folder: Path, chunks: Iterable[list[tuple[str, str]]], tokenizer: Tokenizer) -> None:
    """Tokenizes pairs and writes the arrays of a `Split`, in constant memory.

    Args:
      folder: an empty folder.
      chunks: the pairs, in lists.
      tokenizer: the vocabulary.
    """
    token_type = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    types = dict.fromkeys(SIDES, token_type) | {f"{side}_offsets": np.int64 for side in SIDES}
    with contextlib.ExitStack() as stack:
        arrays = {
            name: stack.enter_context(contextlib.closing(GrowingArray(folder / f"{name}.npy", dtype)))
            for name, dtype in {**types, "characters": np.int32}.items()
        }
        for side in SIDES:
            arrays[f"{side}_offsets"].append([0])
        for pairs in chunks:
            for side, texts in zip(SIDES, zip(*pairs, strict=True), strict=True):
                sentences = tokenizer.encode_arrays(texts)
                ends = len(arrays[side]) + np.cumsum([len(tokens) for tokens in sentences])
                arrays[f"{side}_offsets"].append(ends)
                arrays[side].append(np.concatenate(sentences))
            arrays["characters"].append([len(target) for _, target in pairs])


class GrowingArray:
    """A .npy file of a one-dimensional array that grows. `close` writes the final length into the header."""

    def __init__(self, path: Path, dtype: npt.DTypeLike):
        """Creates the file."""
        self._dtype, self._length = np.dtype(dtype), 0
        self._file = open(path, "wb")  # noqa: SIM115
        self._write_header()

    def __len__(self) -> int:
        return self._length

    def append(self, values: npt.ArrayLike) -> None:
        """Writes values at the end."""
        array = np.asarray(values, self._dtype)
        self._file.write(array.tobytes())
        self._length += len(array)

    def close(self) -> None:
        """Writes the header with the final length, and closes the file."""
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        """Writes the header, which NumPy pads so that the length of the first axis can grow in place."""
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._length,),
        }
        np.lib.format.write_array_header_1_0(self._file, description)
