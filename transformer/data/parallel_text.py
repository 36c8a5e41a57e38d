"""parallel_text: the user's text files, cleaned by rules, with held-out validation and test pairs.

Memory holds only two hashes and a code per pair, no sentences, so a large text needs little memory.
"""

import dataclasses
import enum
import hashlib
import itertools
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int, UInt

from transformer.config import UserError, option
from transformer.data.options import ONLY_A_DEPARTURE, Options
from transformer.data.records import Pair
from transformer.data.text import existing_file, fingerprint, local_path, read_pairs
from transformer.data.text_builder import PairBuilder
from transformer.data.tokenizer import normalize

FORMS = "a file of pairs (such as pairs.tsv) or two files (such as source.txt,target.txt)"
# Largest share of the text that is held out per split, and largest share that is dropped because it shares
# sentences with held-out pairs.
MAX_HELD_OUT = 0.05
RULES = ("min_characters", "max_characters", "max_ratio", "deduplicate", "held_out")


@dataclasses.dataclass(frozen=True)
class ParallelTextOptions(Options):
    """Options of `parallel_text`.

    A text is one file of tab-separated pairs, "pairs.tsv", or two files with one sentence per line,
    "source.txt,target.txt". Each file may be compressed (.gz).
    """

    train: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    validation: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)  # if None, held out of train
    test: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)  # if None, held out of train
    # Number of pairs that are held out of train for each of validation and test that is None.
    held_out: int = option(0, not_in_paper=ONLY_A_DEPARTURE)
    # Training pairs with fewer characters on a side are dropped.
    min_characters: int = option(0, not_in_paper=ONLY_A_DEPARTURE)
    # Training pairs with more characters on a side are dropped.
    max_characters: int | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    # Training pairs with a larger ratio of the longer to the shorter side, in characters, are dropped.
    max_ratio: float | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    # Whether a training pair that repeats an earlier one is dropped.
    deduplicate: bool = option(False, not_in_paper=ONLY_A_DEPARTURE)

    def __post_init__(self):
        self._at_least(0, "held_out", "min_characters")
        self._at_least(1, "max_characters", "max_ratio")


class Fate(enum.IntEnum):
    """Use of a pair of the training text: the split that gets the pair, or the rule that drops the pair."""

    TRAIN = 0
    SHORT = 1
    LONG = 2
    UNEVEN = 3
    DUPLICATE = 4
    SHARED = 5  # shares a sentence with a held-out pair
    VALIDATION = 6
    TEST = 7


class ParallelText(PairBuilder):
    """Sentence pairs of text files.

    If validation or test has no file, pairs of the training text are held out for that split. The rules in
    the options drop pairs of the training text (see `decide_fates`), but never pairs of the other files.
    """

    options_type: ClassVar = ParallelTextOptions
    SPLITS: ClassVar = {"train": Fate.TRAIN, "validation": Fate.VALIDATION, "test": Fate.TEST}

    def variant(self) -> str:
        files = self._files()
        paths = [path for split in files.values() for path in split]
        rules = {rule: value for rule in RULES if (value := getattr(self.options, rule))}
        suffix = json.dumps([rules, {split: len(paths) for split, paths in files.items()}]) if rules else ""
        return f"{self.data.source}-{self.data.target}.{fingerprint(paths, suffix)}"

    def pairs(self, dl_manager):
        files = self._files()
        for split, paths in files.items():
            if next(read_pairs(*paths), None) is None:
                names = ",".join(map(str, paths))
                raise UserError(f"data.options.{split}: {names} has no pairs; give a file that has pairs")
        train = files.pop("train")
        held_out = [fate for split, fate in self.SPLITS.items() if split not in ("train", *files)]
        fates = decide_fates(read_pairs(*train), self.options, held_out)
        summary = summarize(fates, self.options)
        for fate in (Fate.TRAIN, *held_out) if self.options.held_out else (Fate.TRAIN,):
            if not np.any(fates == fate):
                raise UserError(
                    f"data.options.train: no pair is left for {fate.name.lower()}: {summary}; "
                    "give more text, or relax the rules in data.options"
                )
        trained_on = itertools.compress(read_pairs(*train), fates == Fate.TRAIN)
        repeated = count_repeated(trained_on, {split: read_pairs(*paths) for split, paths in files.items()})
        summary += "".join(
            f"; {count:,} pairs of {split} are also training pairs" for split, count in repeated.items()
        )
        self.info.metadata["report"] = f"{','.join(map(str, train))}: {summary}"
        splits = {split: read_pairs(*paths) for split, paths in files.items()}
        for split, fate in self.SPLITS.items():
            if fate in fates:
                splits[split] = itertools.compress(read_pairs(*train), fates == fate)
        return splits

    def _files(self) -> dict[str, list[Path]]:
        """Returns the files of each split for which the options give files."""
        if self.options.train is None:
            raise UserError(f"data.options.train is not set; set it to {FORMS}")
        if self.options.validation is None and not self.options.held_out:
            raise UserError(
                f"data.options.validation is not set; set it to {FORMS}, or set data.options.held_out to "
                "take pairs from the training text"
            )
        files = {}
        for split in self.SPLITS:
            text = getattr(self.options, split)
            if text is None:
                continue
            field = f"data.options.{split}"
            # A comma separates two files, but it may also be part of a name.
            names = [text] if Path(text).expanduser().is_file() else text.split(",")
            if len(names) > 2:
                raise UserError(f"{field} is {text!r}; it must be {FORMS}")
            files[split] = [existing_file(local_path(name.strip(), field), field) for name in names]
        return files


def decide_fates(
    pairs: Iterable[Pair], options: ParallelTextOptions, held_out: Sequence[Fate]
) -> UInt[np.ndarray, "pairs"]:
    """Decides the fate of each pair of a training text.

    Each held-out split gets `options.held_out` pairs, or a twentieth of the text if that is less. No sentence
    of either language is in two splits: a pair that shares a sentence with an earlier pair is not held out,
    and a pair that shares a sentence with a held-out pair is dropped. Sentences are the same if the tokenizer
    reads them as equal. Pairs with rare sentences are held out first. Fewer pairs are held out if otherwise
    more than a twentieth of the text would be dropped. Among equally rare pairs, those with the smallest
    hashes are held out; a pair has the same hash in both directions of translation.

    Args:
      pairs: all pairs of the text.
      options: the rules.
      held_out: the splits without a file: VALIDATION, TEST or both.
    """
    codes, sources, targets = bytearray(), array("Q"), array("Q")
    for source, target in pairs:
        codes.append(_apply_length_rules(source, target, options))
        sources.append(text_hash(source))
        targets.append(text_hash(target))
    fates = np.frombuffer(codes, np.uint8)
    source, target = np.frombuffer(sources, np.uint64), np.frombuffer(targets, np.uint64)
    if options.deduplicate:
        _set_fate(fates, _is_repeated(source + 3 * target, fates), Fate.DUPLICATE)
    if options.held_out and held_out:
        chosen, size = _choose_held_out(source, target, fates, options.held_out, len(held_out))
        shares_sentence = np.isin(source, source[chosen]) | np.isin(target, target[chosen])
        _set_fate(fates, shares_sentence, Fate.SHARED)
        for number, fate in enumerate(held_out):
            fates[chosen[number * size : (number + 1) * size]] = fate
    return fates


def _choose_held_out(
    source: UInt[np.ndarray, "pairs"],
    target: UInt[np.ndarray, "pairs"],
    fates: UInt[np.ndarray, "pairs"],
    size: int,
    num_splits: int,
) -> tuple[Int[np.ndarray, "chosen"], int]:
    """Returns the indices of the pairs to hold out, and the number of pairs per split."""
    remaining = np.flatnonzero(fates == Fate.TRAIN)
    limit = max(1, int(MAX_HELD_OUT * len(remaining)))  # held-out pairs per split; dropped pairs
    candidates = remaining[~(_is_repeated(source, fates) | _is_repeated(target, fates))[remaining]]
    # Upper bound on the number of pairs that are dropped if a candidate is held out.
    losses = (
        _counts(source[remaining], source[candidates]) + _counts(target[remaining], target[candidates]) - 2
    )
    order = np.lexsort(((source + target)[candidates], losses))
    affordable = int(np.searchsorted(np.cumsum(losses[order]), limit, side="right"))
    size = min(size, limit, affordable // num_splits)
    return candidates[order][: size * num_splits], size


def _counts(values: UInt[np.ndarray, "n"], wanted: UInt[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
    """Returns how often each of the wanted values occurs."""
    distinct, counts = np.unique(values, return_counts=True)
    return counts[np.searchsorted(distinct, wanted)]


def count_repeated(training: Iterable[Pair], others: Mapping[str, Iterable[Pair]]) -> dict[str, int]:
    """Counts the pairs of each other split that are also training pairs; omits splits without such pairs."""
    hashes = {split: [tuple(map(text_hash, pair)) for pair in pairs] for split, pairs in others.items()}
    wanted = set(itertools.chain.from_iterable(hashes.values()))
    seen = {key for pair in training if (key := tuple(map(text_hash, pair))) in wanted} if wanted else set()
    counts = {split: sum(key in seen for key in keys) for split, keys in hashes.items()}
    return {split: count for split, count in counts.items() if count}


def summarize(fates: UInt[np.ndarray, "pairs"], options: ParallelTextOptions) -> str:
    """Returns one line with the number of pairs of each fate."""
    count = dict(zip(Fate, np.bincount(fates, minlength=len(Fate)), strict=True))
    below = "empty" if options.min_characters == 1 else "below {:,} characters"
    reasons = [
        (options.min_characters, Fate.SHORT, below),
        (options.max_characters, Fate.LONG, "longer than {:,} characters"),
        (options.max_ratio, Fate.UNEVEN, "with a ratio above {:g}"),
        (options.deduplicate, Fate.DUPLICATE, "duplicates"),
        (count[Fate.SHARED], Fate.SHARED, "sharing a sentence with a held-out pair"),
    ]
    parts = [f"{len(fates):,} pairs read"]
    if dropped := [f"{count[fate]:,} {text.format(rule)}" for rule, fate, text in reasons if rule]:
        parts.append("dropped " + ", ".join(dropped))
    held_out = [fate for fate in (Fate.VALIDATION, Fate.TEST) if count[fate]]
    if held_out:
        fewer = "" if count[held_out[0]] == options.held_out else f" of {options.held_out:,} requested"
        parts.append(
            "held out " + ", ".join(f"{count[fate]:,}{fewer} for {fate.name.lower()}" for fate in held_out)
        )
    return "; ".join([*parts, f"{count[Fate.TRAIN]:,} to train on"])


def _apply_length_rules(source: str, target: str, options: ParallelTextOptions) -> Fate:
    """Counts characters, since some languages put no spaces between words. Ignores space at both ends."""
    shorter, longer = sorted((len(source.strip()), len(target.strip())))
    if shorter < options.min_characters:
        return Fate.SHORT
    if options.max_characters and longer > options.max_characters:
        return Fate.LONG
    if options.max_ratio and longer > options.max_ratio * shorter:
        return Fate.UNEVEN
    return Fate.TRAIN


def _is_repeated(
    keys: UInt[np.ndarray, "pairs"], fates: UInt[np.ndarray, "pairs"]
) -> Bool[np.ndarray, "pairs"]:
    """Marks the pairs whose key equals that of an earlier pair. Considers only pairs with fate TRAIN."""
    remaining = np.flatnonzero(fates == Fate.TRAIN)
    _, first = np.unique(keys[remaining], return_index=True)
    repeated = np.zeros(len(keys), bool)
    repeated[remaining] = True
    repeated[remaining[first]] = False
    return repeated


def _set_fate(fates: UInt[np.ndarray, "pairs"], selected: Bool[np.ndarray, "pairs"], fate: Fate) -> None:
    """Changes the fate of those selected pairs whose fate is TRAIN, in place."""
    fates[selected & (fates == Fate.TRAIN)] = fate


def text_hash(text: str) -> int:
    """Returns a hash of 64 bits. Texts that the tokenizer reads as equal have equal hashes."""
    return int.from_bytes(hashlib.blake2b(normalize(text).encode(), digest_size=8).digest(), "little")
