"""The interface of a task to the trainer."""

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from transformer.config import ExperimentConfig, paper_peak


class Hyperparameters(NamedTuple):
    """Values that may change from step to step without a recompilation."""

    learning_rate: Float[Array, ""] | float  # at the peak of the schedule
    dropout_rate: Float[Array, ""] | float
    label_smoothing: Float[Array, ""] | float

    @classmethod
    def from_config(cls, config: ExperimentConfig) -> "Hyperparameters":
        """Returns the values of a config. If `optimizer.learning_rate` is None, the paper's peak is used."""
        return cls(
            learning_rate=config.optimizer.learning_rate or paper_peak(config),
            dropout_rate=config.model.dropout_rate,
            label_smoothing=config.train.label_smoothing,
        )


# Sums over a batch, which can be added over parts, devices, steps and batches. Two sums are required: "loss",
# which is minimized, and "count" (of target tokens or examples), which divides the gradient of the loss.
Totals = dict[str, Float[Array, ""] | Float[np.ndarray, ""]]

# (params, batch, key, hyperparameters) -> (summed loss, totals); if the key is None, no dropout.
LossFn = Callable[[PyTree, PyTree, Key[Array, ""] | None, Hyperparameters], tuple[Float[Array, ""], Totals]]


class Trainable(abc.ABC):
    """The interface through which the training loop uses a task.

    `transformer.tasks` has the tasks that a config can name.

    Attributes:
      identity: names or digests of the config, the data and the vocabulary. A checkpoint can be resumed only
        by a task with an equal identity.
      metadata: JSON data stored in each checkpoint; `Task.load_model` reads it.
      steps_per_epoch: number of updates that together use every example once.
      unit: the unit of the total "count": tokens or images.
      criterion: the entry of `summary` that ranks checkpoints and ends training early; lower is better.
      uniform_loss: the criterion of a model that predicts all tokens or classes with equal probability; None
        if there is no such model.
    """

    identity: Mapping[str, str]
    metadata: Mapping[str, Any]
    steps_per_epoch: int
    unit: str = "tokens"
    criterion: str
    uniform_loss: float | None = None

    @abc.abstractmethod
    def init(self, seed: int) -> PyTree:
        """Returns the weights before training."""

    @abc.abstractmethod
    def loss(
        self, params: PyTree, batch: PyTree, key: Key[Array, ""] | None, hyperparameters: Hyperparameters
    ) -> tuple[Float[Array, ""], Totals]:
        """Returns the summed loss of a batch and its totals; see `LossFn`. This method is traced."""

    @abc.abstractmethod
    def batches(self, first_step: int) -> Iterator[PyTree]:
        """Yields this process's rows of each batch, from step `first_step` on. The first step is 0."""

    @abc.abstractmethod
    def example_ids(self, step: int) -> list[int]:
        """Returns the indices of the training examples in the batch of a step. The first step is 0."""

    @abc.abstractmethod
    def validation_batches(self) -> Iterator[PyTree]:
        """Yields batches that hold every validation example once."""

    @abc.abstractmethod
    def summary(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Computes metrics from totals: at least the mean "loss" and the criterion."""

    def diagnostics(self, params: PyTree) -> dict[str, float]:
        """Returns metrics of how the model works, which are recorded if `train.diagnostics` is true."""
        return {}
