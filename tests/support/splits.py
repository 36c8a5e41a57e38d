"""Splits made from a few sentences."""

import numpy as np

from transformer.data.splits import Side, Split


def split_of(sources: list[list[int]], targets: list[list[int]], characters: list[int]) -> Split:
    """A split in memory, from the tokens of its sentences."""
    return Split((_side_of(sources), _side_of(targets)), np.array(characters))


def _side_of(sentences: list[list[int]]) -> Side:
    return Side(np.concatenate(sentences), np.cumsum([0, *map(len, sentences)]))
