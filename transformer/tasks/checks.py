"""Checks of configs and of stored data that tasks share."""

from collections.abc import Mapping
from pathlib import Path

from transformer.config import ExperimentConfig, UserError, choose, result_hash
from transformer.tasks.task import Task
from transformer.training.optimizers import make_optimizer, make_schedule
from transformer.training.parallelism import PARALLELISMS


def check_model_kind(task: type[Task], config: ExperimentConfig) -> None:
    """Checks that a task can use the kind of model in a config.

    Raises:
      UserError: it cannot.
    """
    if config.model.kind not in task.kinds:
        raise UserError(
            f"model.kind is {config.model.kind!r}; with task={config.task}, it must be one of: "
            f"{', '.join(task.kinds)}"
        )


def check_stored_config(
    task: type[Task], config: ExperimentConfig, folder: Path, stored: Mapping[str, str]
) -> None:
    """Checks that a config is the one that the checkpoints of a run were trained with.

    Raises:
      UserError: it is not.
    """
    if stored["config"] != result_hash(config, task.options_type(config)):
        raise UserError(f"{folder}/config.json was changed after the training; restore config.json")


def check_stored_content(folder: Path, data_folder: Path, content: str, stored: Mapping[str, str]) -> None:
    """Checks that prepared data has the content that the checkpoints of a run were trained on.

    Raises:
      UserError: it has not.
    """
    if content != stored["content"]:
        raise UserError(
            f"{data_folder} does not contain the data that {folder} was trained on; delete {data_folder} and "
            "prepare the original data again"
        )


def check_raw_data(folder: Path, name: str, present: str | None) -> None:
    """Checks that the raw data of a run, if it is still there, is what the run was trained on.

    Args:
      folder: the run folder.
      name: the name of the prepared data of the run.
      present: the name that the raw data has now; None if it cannot be read.

    Raises:
      UserError: the raw data has changed.
    """
    if present not in (None, name):
        raise UserError(
            f"{folder} was trained on {name}, but the data is now {present}; restore the data, or train in "
            "another folder"
        )


def check_training(config: ExperimentConfig) -> None:
    """Checks the names of the optimizer, the schedule and the parallelism.

    Raises:
      UserError: a name is unknown.
    """
    make_optimizer(config.optimizer, make_schedule(config.optimizer, 1.0, config.train.steps))
    choose(PARALLELISMS, config.train.parallelism, "train.parallelism")
