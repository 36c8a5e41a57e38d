"""Interface of the plans, which assign training pairs to the rows of batches.

A plan depends only on the lengths of the pairs and a seed. It computes the batch of any step without the
batches before that step, so training resumes from a step number alone. All epochs have the same number of
steps.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


@runtime_checkable
class Plan(Protocol):
    """The training batches of all steps. Steps are counted from 0 over all epochs.

    Attributes:
      steps_per_epoch: number of batches that together hold every pair once.
      max_lengths: tokens of the longest source and of the longest target in the batches.
      dropped: number of pairs that are in no batch, because a side is longer than a row.
    """

    steps_per_epoch: int
    max_lengths: tuple[int, int]
    dropped: int

    @property
    def summary(self) -> str:
        """Shapes of the batches, for the log."""

    def shape(self, step: int) -> tuple[int, int, int]:
        """Returns the number of rows, the tokens per source row and per target row, padding included."""

    def rows(self, step: int) -> list[np.ndarray]:
        """Returns the indices of the pairs in each non-empty row."""


def select_fitting(
    source_lengths: Int[np.ndarray, "pairs"], target_lengths: Int[np.ndarray, "pairs"], row_length: int
) -> tuple[Int[np.ndarray, "fitting"], Int[np.ndarray, "2 fitting"]]:
    """Returns the indices of the pairs that fit into a row, and their source and target lengths.

    Raises:
      ValueError: no pair fits.
    """
    fits = np.maximum(source_lengths, target_lengths) <= row_length
    if not fits.any():
        raise ValueError("no pair fits into a row")
    return np.flatnonzero(fits), np.stack([source_lengths[fits], target_lengths[fits]])
