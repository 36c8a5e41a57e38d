"""Tasks: each joins data, model, loss, decoding and scores. A config names one as `config.task`."""

from pathlib import Path

from transformer.config import ExperimentConfig, choose
from transformer.data.progress import Progress
from transformer.tasks.task import LoadedModel, Task
from transformer.tasks.translation import Translation

__all__ = ["TASKS", "LoadedModel", "Task", "Translation", "open_task", "resolve", "task_type"]

TASKS: dict[str, type[Task]] = {"translation": Translation}


def task_type(config: ExperimentConfig) -> type[Task]:
    """The task that a config names."""
    return choose(TASKS, config.task, "task")


def resolve(config: ExperimentConfig) -> ExperimentConfig:
    """Checks every name that a config selects, and completes `data.options` with their defaults.

    Raises:
      UserError: an unknown name, or an option that the data set does not have.
    """
    return task_type(config).resolve(config)


def open_task(config: ExperimentConfig, folder: Path, progress: Progress | None = None) -> Task:
    """Opens the task of a resolved config; see `Task.open`."""
    return task_type(config).open(config, folder, progress)
