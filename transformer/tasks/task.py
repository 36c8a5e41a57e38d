"""The interface of a task."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from transformer.config import ExperimentConfig
from transformer.data.progress import Progress
from transformer.training.trainable import Trainable


class LoadedModel(NamedTuple):
    """A model as a run folder describes it, without its weights.

    Attributes:
      model: a Flax module.
      tokenizer: its vocabulary; None for a task without text.
    """

    model: Any
    tokenizer: Any


class Task(Trainable):
    """Data, model, loss and scores of a kind of problem; `config.task` names it.

    The trainer sees a task as a `Trainable`. A subclass also defines how it is opened, loaded and scored.
    """

    @classmethod
    @abc.abstractmethod
    def resolve(cls, config: ExperimentConfig) -> ExperimentConfig:
        """Checks the names that a config selects, and completes `data.options` with their defaults.

        Raises:
          UserError: an unknown name, or an option that the data set does not have.
        """

    @classmethod
    @abc.abstractmethod
    def open(cls, config: ExperimentConfig, folder: Path, progress: Progress | None = None) -> "Task":
        """Opens the data of a run, and prepares what is missing; the vocabulary is stored in the folder.

        Raises:
          UserError: data that cannot be used.
        """

    @classmethod
    @abc.abstractmethod
    def load_model(cls, config: ExperimentConfig, folder: Path, metadata: Mapping[str, Any]) -> LoadedModel:
        """Makes the model of a run folder from the metadata of one of its checkpoints; reads no data.

        Raises:
          UserError: a file of the folder is missing or is not the one that the model was trained with.
        """

    @abc.abstractmethod
    def evaluate(self, model: Any, params: PyTree, split: str, progress) -> Any:
        """Scores a trained model on a split."""
