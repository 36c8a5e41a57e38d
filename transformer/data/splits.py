"""Splits as arrays of tokens, stored on disk and read through memory maps."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Int, Integer

from transformer.data.tokenizer import Tokenizer

PAIR_SIDES = ("source", "target")
DOCUMENT_SIDES = ("text",)


@dataclasses.dataclass(frozen=True)
class Side:
    """The texts of one column: the sentences of one language, or documents.

    Attributes:
      tokens: the tokens of all texts. Text i is tokens[offsets[i]:offsets[i + 1]].
      offsets: the start of each text in `tokens`, and the end of the last text.
    """

    tokens: Integer[np.ndarray, "tokens"]
    offsets: Int[np.ndarray, "offsets"]

    @property
    def lengths(self) -> Int[np.ndarray, "texts"]:
        """Tokens of each text, EOS included."""
        return np.diff(self.offsets)

    def __getitem__(self, index: int | np.integer) -> Integer[np.ndarray, "_"]:
        """Returns the tokens of a text."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class Split:
    """The sentence pairs or the documents of a split, in the order of the data set.

    Attributes:
      sides: source and target sentences, or the documents alone.
      characters: length of each raw text of the last side, in characters.
      folder: the folder that the arrays are mapped from; None if the arrays are in memory.
    """

    sides: tuple[Side, ...]
    characters: Int[np.ndarray, "records"]
    folder: Path | None = None

    def __reduce__(self):
        """Pickles the path of the folder, so that processes that assemble batches map the same files."""
        if self.folder is None:
            return Split, (self.sides, self.characters)
        return load_split, (self.folder,)

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def source(self) -> Side:
        """The first side. For documents, it is the same as `target`."""
        return self.sides[0]

    @property
    def target(self) -> Side:
        """The last side."""
        return self.sides[-1]

    @property
    def lengths(self) -> Int[np.ndarray, "records"]:
        """Tokens of the longer side of each pair, or of each document."""
        return np.maximum.reduce(self.side_lengths)

    @property
    def side_lengths(self) -> tuple[Int[np.ndarray, "records"], ...]:
        """Tokens of each text, per side."""
        return tuple(side.lengths for side in self.sides)


def encode_pairs(sources: Sequence[str], targets: Sequence[str], tokenizer: Tokenizer) -> Split:
    """Returns the tokens of sentence pairs, in memory."""
    sides = []
    for texts in (sources, targets):
        sentences = tokenizer.encode_arrays(texts)
        sides.append(Side(np.concatenate(sentences), np.cumsum([0, *map(len, sentences)])))
    return Split(tuple(sides), np.array([len(target) for target in targets]))


def load_split(folder: Path) -> Split:
    """Memory-maps the files that `write_split` wrote. A record is read when it is used."""
    arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
    names = PAIR_SIDES if "source" in arrays else DOCUMENT_SIDES
    sides = tuple(Side(arrays[name], arrays[f"{name}_offsets"]) for name in names)
    return Split(sides, arrays["characters"], folder)


def write_split(
    folder: Path,
    chunks: Iterable[list[tuple[str, ...]]],
    tokenizer: Tokenizer,
    sides: Sequence[str] = PAIR_SIDES,
) -> None:
    """Tokenizes records and writes the arrays of a `Split`, in constant memory.

    Args:
      folder: an empty folder.
      chunks: the records, in lists.
      tokenizer: the vocabulary.
      sides: `PAIR_SIDES` or `DOCUMENT_SIDES`.
    """
    token_type = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    types = dict.fromkeys(sides, token_type) | {f"{side}_offsets": np.int64 for side in sides}
    with contextlib.ExitStack() as stack:
        arrays = {
            name: stack.enter_context(contextlib.closing(GrowingArray(folder / f"{name}.npy", dtype)))
            for name, dtype in {**types, "characters": np.int32}.items()
        }
        for side in sides:
            arrays[f"{side}_offsets"].append([0])
        for records in chunks:
            for side, texts in zip(sides, zip(*records, strict=True), strict=True):
                encoded = tokenizer.encode_arrays(texts)
                ends = len(arrays[side]) + np.cumsum([len(tokens) for tokens in encoded])
                arrays[f"{side}_offsets"].append(ends)
                arrays[side].append(np.concatenate(encoded))
            arrays["characters"].append([len(record[-1]) for record in records])


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
