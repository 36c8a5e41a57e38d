"""number_words: lists of numbers, written as words in two languages."""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from typing import ClassVar

from transformer.config import UserError, option
from transformer.data.options import ONLY_A_DEPARTURE, Options
from transformer.data.text_builder import PairBuilder


@dataclasses.dataclass(frozen=True)
class NumberWordsOptions(Options):
    """Options of `number_words`."""

    lists: int = option(50_000, not_in_paper=ONLY_A_DEPARTURE)  # pairs in the training split

    def __post_init__(self):
        self._at_least(1, "lists")


class NumberWords(PairBuilder):
    """Lists of numbers that num2words writes as words: "twelve; ninety-one" and "zwölf; einundneunzig".

    A list has 1 to 4 numbers; in the split `test_long` a list has 5 to 10. Each number is drawn uniformly
    below a bound of 10, 100, ... or 100,000. The bounds and the list lengths are drawn uniformly, too. No
    list is in two splits. A small model learns the task in minutes. The model must learn every number, the
    order of words in a number (German puts ones before tens) and the order of the list.
    """

    options_type: ClassVar = NumberWordsOptions
    # (fewest, most) numbers per list. Each split has 1,000 lists, but no more than the training split.
    HELD_OUT: ClassVar = {"test": (1, 4), "validation": (1, 4), "test_long": (5, 10)}
    SPLITS: ClassVar = ("train", *HELD_OUT)

    def variant(self) -> str:
        for language in (self.data.source, self.data.target):
            _number_names(language)  # refuses an unknown language
        return f"{self.data.source}-{self.data.target}.{self.options.lists}"

    def pairs(self, dl_manager):
        to_source, to_target = _number_names(self.data.source), _number_names(self.data.target)
        sampler = _ListSampler()
        # Held-out lists are drawn first, so they do not depend on the number of training lists if that is at
        # least 1,000.
        size = min(1_000, self.options.lists)
        lists = {split: list(sampler.draw(size, *bounds)) for split, bounds in self.HELD_OUT.items()}
        lists["train"] = sampler.draw(self.options.lists, 1, 4)
        return {
            split: (("; ".join(map(to_source, row)), "; ".join(map(to_target, row))) for row in rows)
            for split, rows in lists.items()
        }


class _ListSampler:
    """Draws random lists of numbers. No list is drawn twice."""

    def __init__(self):
        self._rng = random.Random(2017)
        self._drawn: set[tuple[int, ...]] = set()

    def draw(self, count: int, min_length: int, max_length: int) -> Iterator[tuple[int, ...]]:
        """Yields `count` new lists of `min_length` to `max_length` numbers."""
        while count:
            length = self._rng.randint(min_length, max_length)
            numbers = tuple(self._rng.randrange(10 ** self._rng.randint(1, 5)) for _ in range(length))
            if numbers not in self._drawn:
                self._drawn.add(numbers)
                count -= 1
                yield numbers


def _number_names(language: str) -> Callable[[int], str]:
    """Returns the function that writes a number in words."""
    import num2words

    if language not in num2words.CONVERTER_CLASSES:
        known = ", ".join(sorted(num2words.CONVERTER_CLASSES))
        raise UserError(f"number_words: num2words has no language {language!r}; choose one of: {known}")
    return functools.cache(functools.partial(num2words.num2words, lang=language))
