"""The interface of a task to the trainer."""

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Key, PyTree

from transformer.config import ExperimentConfig, paper_peak


class Hyperparameters(NamedTuple):
    """Values that may change from step to step without a recompilation."""

    learning_rate: Float[Array, ""] | float  # at the peak of the schedule
    dropout_rate: Float[Array, ""] | float
    label_smoothing: Float[Array, ""] | float

    @classmethod
    def from_config(cls, config: ExperimentConfig) -> "Hyperparameters":
        """The values of a config; without `optimizer.learning_rate`, the paper's peak."""
        return cls(
            learning_rate=config.optimizer.learning_rate or paper_peak(config),
            dropout_rate=config.model.dropout_rate,
            label_smoothing=config.train.label_smoothing,
        )


# Sums over a batch, to be added over parts, devices, steps and batches. At least "loss", which is minimized,
# and "count", by which its gradient is divided: tokens of the target, or examples.
Totals = dict[str, Float[Array, ""]]

# (params, batch, key, hyperparameters) -> (summed loss, totals); without a key, no dropout.
LossFn = Callable[[PyTree, PyTree, Key[Array, ""] | None, Hyperparameters], tuple[Float[Array, ""], Totals]]


class Trainable(abc.ABC):
    """A task, as the trainer sees it. `transformer.tasks` has the ones that a config can name.

    Attributes:
      identity: text that names the config, the data and the vocabulary; a checkpoint resumes only where
        all of it is equal.
      metadata: JSON data stored in each checkpoint, for those who use the trained model.
      steps_per_epoch: updates that show every example once.
      criterion: the entry of `summary` that ranks checkpoints and ends training early; lower is better.
    """

    identity: Mapping[str, str]
    metadata: Mapping[str, Any]
    steps_per_epoch: int
    criterion: str

    @abc.abstractmethod
    def init(self, seed: int) -> PyTree:
        """Returns the weights before training."""

    @abc.abstractmethod
    def loss(
        self, params: PyTree, batch: PyTree, key: Key[Array, ""] | None, hyperparameters: Hyperparameters
    ) -> tuple[Float[Array, ""], Totals]:
        """Returns the summed loss of a batch and its totals; traced, see `LossFn`."""

    @abc.abstractmethod
    def batches(self, first_step: int) -> Iterator[PyTree]:
        """Yields this process's rows of the batch of each step from `first_step` on, counted from 0."""

    @abc.abstractmethod
    def validation_batches(self) -> Iterator[PyTree]:
        """Yields batches that hold every validation example once."""

    @abc.abstractmethod
    def summary(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Returns the figures that totals stand for: at least "loss", a mean, and the criterion."""
