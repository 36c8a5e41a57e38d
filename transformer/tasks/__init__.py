"""Tasks. A task joins data, model, loss, decoding and scores. `config.task` names the task of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer.config import ExperimentConfig, choose
from transformer.data.progress import Progress
from transformer.tasks.image_classification import ImageClassification
from transformer.tasks.language_modeling import LanguageModeling
from transformer.tasks.task import LoadedModel, Task
from transformer.tasks.translation import Translation

__all__ = [
    "TASKS",
    "ImageClassification",
    "LanguageModeling",
    "LoadedModel",
    "Task",
    "Translation",
    "open_task",
    "resolve",
    "task_type",
]

TASKS: dict[str, type[Task]] = {
    "translation": Translation,
    "language_modeling": LanguageModeling,
    "image_classification": ImageClassification,
}


def task_type(config: ExperimentConfig) -> type[Task]:
    """Returns the class of the task that a config names."""
    return choose(TASKS, config.task, "task")


def resolve(config: ExperimentConfig) -> ExperimentConfig:
    """Checks the names in a config, and adds the defaults of options missing from `data.options`.

    The name of a TFDS set of texts is checked when the data is opened.

    Raises:
      UserError: an unknown name, or an option that the data set does not have.
    """
    return task_type(config).resolve(config)


def open_task(
    config: ExperimentConfig,
    folder: Path,
    progress: Progress | None = None,
    stored: Mapping[str, str] | None = None,
    may_prepare: bool = True,
    tokenizer: Any = None,
) -> Task:
    """Opens the task of a resolved config; see `Task.open`."""
    return task_type(config).open(config, folder, progress, stored, may_prepare, tokenizer)
