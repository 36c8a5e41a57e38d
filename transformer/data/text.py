"""Text files of sentence pairs: reading them, and deciding what each pair is for.

Deciding takes some 60 bytes a pair, however long the sentences are: hashes, their order, and its fate.
"""

import enum
import gzip
import hashlib
import itertools
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from transformer.config import DataConfig, UserError

RULES = ("min_characters", "max_characters", "max_ratio", "deduplicate", "held_out")  # fields of DataConfig


class Fate(enum.IntEnum):
    """What becomes of a pair of the training text."""

    TRAIN = 0
    SHORT = 1
    LONG = 2
    UNEVEN = 3
    REPEATED = 4
    SHARED = 5  # with a pair that is held out, a sentence
    VALIDATION = 6
    TEST = 7


def read_pairs(*paths: Path) -> Iterator[tuple[str, str]]:
    """Pairs of one TSV file or of two files. Only a newline ends a line."""
    if len(paths) == 1:
        for number, line in enumerate(_lines(paths[0]), start=1):
            fields = line.split("\t")
            if len(fields) != 2:
                raise UserError(
                    f"{paths[0]}:{number}: {len(fields)} tab-separated fields; there must be 2 "
                    "(two files of plain text are given as source.txt,target.txt)"
                )
            yield fields[0], fields[1]
        return
    sides = [_lines(path) for path in paths]
    for number, pair in enumerate(itertools.zip_longest(*sides), start=1):
        if None in pair:
            shorter, longer = paths if pair[0] is None else reversed(paths)
            rest = sum(1 for side in sides for _ in side)
            raise UserError(f"{shorter} ends after {number - 1} lines, {longer} after {number + rest}")
        yield pair


def decide(pairs: Iterable[tuple[str, str]], data: DataConfig, missing: Sequence[Fate]) -> np.ndarray:
    """The fate of each pair of a training text.

    Held out for each missing split are `data.held_out` pairs, or a twentieth of the text if that is less:
    those with the smallest hashes, whichever way they are translated. No sentence of either language is in
    two splits: a held-out pair has none in common with another, and pairs that have one are left out.

    Args:
      pairs: all of them.
      data: the rules.
      missing: splits for which there is no text of their own.
    """
    fates, sources, targets = bytearray(), array("Q"), array("Q")
    for source, target in pairs:
        fates.append(_fate(source, target, data))
        sources.append(_hash(source))
        targets.append(_hash(target))
    fate = np.frombuffer(fates, np.uint8)
    source, target = np.frombuffer(sources, np.uint64), np.frombuffer(targets, np.uint64)
    if data.deduplicate:
        _decide(fate, _again(source + 3 * target, fate), Fate.REPEATED)
    if data.held_out and missing:
        left = np.flatnonzero(fate == Fate.TRAIN)
        new = left[~(_again(source, fate) | _again(target, fate))[left]]
        each = min(data.held_out, max(1, len(left) // 20))
        chosen = new[np.argsort((source + target)[new], kind="stable")][: each * len(missing)]
        _decide(fate, np.isin(source, source[chosen]) | np.isin(target, target[chosen]), Fate.SHARED)
        for number, split in enumerate(missing):
            fate[chosen[number * each : (number + 1) * each]] = split
    return fate


def report(fates: np.ndarray, data: DataConfig) -> str:
    """What became of a training text, in one line."""
    count = dict(zip(Fate, np.bincount(fates, minlength=len(Fate)), strict=True))
    dropped = [
        (data.min_characters, Fate.SHORT, "empty" if data.min_characters == 1 else "below {:,} characters"),
        (data.max_characters, Fate.LONG, "longer than {:,} characters"),
        (data.max_ratio, Fate.UNEVEN, "with a ratio above {:g}"),
        (data.deduplicate, Fate.REPEATED, "duplicates"),
        (count[Fate.SHARED], Fate.SHARED, "with a sentence of a held-out pair"),
    ]
    parts = [f"{len(fates):,} pairs read"]
    if said := [f"{count[fate]:,} {text.format(rule)}" for rule, fate, text in dropped if rule]:
        parts.append("dropped " + ", ".join(said))
    held_out = [split for split in (Fate.VALIDATION, Fate.TEST) if count[split]]
    if held_out:
        parts.append(
            "held out " + ", ".join(f"{count[split]:,} for {split.name.lower()}" for split in held_out)
        )
    return "; ".join([*parts, f"{count[Fate.TRAIN]:,} to train on"])


def existing(path: Path, field: str) -> Path:
    """The file, or the one of this name and .gz.

    Raises:
      UserError: there is neither.
    """
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise UserError(f"{field}: {path} (or .gz) is not a file")


def fingerprint(paths: Iterable[Path], also: str = "") -> str:
    """Twelve hexadecimal digits that name the files' bytes, and what is done with them."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(also.encode())
    return digest.hexdigest()[:12]


def _fate(source: str, target: str, data: DataConfig) -> Fate:
    """By length in characters, which languages without spaces have too, white space around not counted."""
    shorter, longer = sorted((len(source.strip()), len(target.strip())))
    if shorter < data.min_characters:
        return Fate.SHORT
    if data.max_characters and longer > data.max_characters:
        return Fate.LONG
    if data.max_ratio and longer > data.max_ratio * shorter:
        return Fate.UNEVEN
    return Fate.TRAIN


def _again(keys: np.ndarray, fates: np.ndarray) -> np.ndarray:
    """Which keys a pair before them has too, among those still to train on."""
    left = np.flatnonzero(fates == Fate.TRAIN)
    _, first = np.unique(keys[left], return_index=True)
    again = np.zeros(len(keys), bool)
    again[left] = True
    again[left[first]] = False
    return again


def _decide(fates: np.ndarray, chosen: np.ndarray, fate: Fate) -> None:
    fates[chosen & (fates == Fate.TRAIN)] = fate


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
        number = 0
        try:
            for line in file:
                number += 1
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: broken after line {number}: {error}") from None
