"""Checks of the configs and the data of tasks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from transformer.config import ExperimentConfig, UserError, choose, result_hash
from transformer.model.decoder_only import DecoderOnly
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.positions import POSITIONS
from transformer.tasks.task import Task
from transformer.training.optimizers import make_optimizer, make_schedule
from transformer.training.parallelism import PARALLELISMS


def check_model_kind(task: type[Task], config: ExperimentConfig) -> None:
    """Checks that a task can use the kind of model in a config.

    Raises:
      UserError: the task cannot use this kind.
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
      UserError: config.json was changed after the training.
    """
    if stored["config"] != result_hash(config, task.options_type(config)):
        raise UserError(f"{folder}/config.json was changed after the training; restore config.json")


def check_stored_content(folder: Path, data_folder: Path, content: str, stored: Mapping[str, str]) -> None:
    """Checks that prepared data has the content that the checkpoints of a run were trained on.

    Raises:
      UserError: the prepared data has other content.
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


def check_lengths(
    model: EncoderDecoder,
    split: str,
    side_lengths: tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]],
    max_length: int | None = None,
) -> None:
    """Checks that the model can read every sentence of a split, since no sentence is clipped.

    Args:
      model: the model, built with or without `trained_lengths`.
      split: name of the split, for the message.
      side_lengths: tokens of each source and of each target in the split.
      max_length: the largest allowed length of a sentence, in tokens, which bounds memory; None for no bound.

    Raises:
      UserError: a sentence is too long.
    """
    for side, lengths, limit in zip(("source", "target"), side_lengths, model.max_lengths, strict=True):
        index = int(np.argmax(lengths))
        longest = f"pair {index + 1} of split {split!r} has a {side} of {lengths[index]:,} tokens"
        if max_length is not None and lengths[index] > max_length:
            raise UserError(
                f"{longest}, but data.row_length and decode.batch_tokens allow {max_length:,}; remove the "
                "pair, or increase decode.batch_tokens"
            )
        if limit is None or lengths[index] <= limit:
            continue
        scheme = f"model.positions={model.config.positions!r}"
        if limit in (model.trained_lengths or ()):
            policies = [
                name for name in POSITIONS[model.config.positions].overflow_policies if name != "error"
            ]
            values = " or ".join(policies)
            advice = f"{scheme} was trained on at most {limit}; add --set=model.overflow={values}"
        else:
            advice = f"{scheme} has only {limit} positions; increase model.max_positions"
            if isinstance(model, DecoderOnly):
                advice += ", which source and target share"
        raise UserError(f"{longest}, but {advice}")
