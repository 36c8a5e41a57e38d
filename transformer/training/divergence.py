"""Detection of diverged training. The report names the step and its examples."""

import math
from pathlib import Path
from typing import Any

from transformer.config import ExperimentConfig, UserError
from transformer.json_files import finite, write_json
from transformer.training.processes import is_first

MARGIN = 1.0  # nats per token
DIVERGED_FILE = "diverged.json"


class Diverged(UserError):
    """Training that has diverged. The run keeps its earlier checkpoints and is not complete."""

    exit_status = 3


class BadStep(ArithmeticError):
    """An update whose loss or gradient is not finite.

    Attributes:
      step: number of the update, counted from 1.
      loss: mean loss of the update.
      gradient_norm: norm of the gradient of the update.
    """

    def __init__(self, step: int, loss: float, gradient_norm: float):
        super().__init__(f"the loss of step {step} is {loss}, and its gradient norm is {gradient_norm}")
        self.step, self.loss, self.gradient_norm = step, loss, gradient_norm


def record_divergence(
    bad_step: BadStep, examples: list[int], folder: Path, config: ExperimentConfig
) -> Diverged:
    """Stores the step and the indices of its examples in `diverged.json`, and returns the error.

    Args:
      bad_step: the step.
      examples: the indices of its examples.
      folder: the run folder.
      config: the config of the run.
    """
    path = folder / DIVERGED_FILE
    values: dict[str, Any] = {
        "step": bad_step.step,
        "loss": finite(bad_step.loss),
        "gradient_norm": finite(bad_step.gradient_norm),
        "examples": examples,
    }
    if is_first():
        write_json(path, values)
    return Diverged(f"training diverged: {bad_step} ({path} lists its examples); {_advice(folder, config)}")


def check_validation(
    step: int, criterion: float, uniform: float | None, folder: Path, config: ExperimentConfig
) -> Diverged | None:
    """Returns an error if a validation shows that training has diverged.

    Training has diverged if the criterion is not finite. After the warm-up, or at the last step, it has also
    diverged if the criterion exceeds `uniform` by more than `MARGIN`. The margin allows for a model that is
    hardly trained.

    Args:
      step: number of updates.
      criterion: the result of the validation.
      uniform: the criterion of the model that predicts all tokens with equal probability; None if there is no
        such model.
      folder: the run folder.
      config: the config of the run.
    """
    is_warm = step >= min(config.optimizer.warmup_steps, config.train.steps)
    if math.isfinite(criterion) and (uniform is None or criterion <= uniform + MARGIN or not is_warm):
        return None
    limit = "" if uniform is None else f", compared with {uniform:.4f} for a model that has learned nothing"
    return Diverged(
        f"training diverged: the validation loss of step {step} is {criterion:.4f}{limit}; "
        f"{_advice(folder, config)}"
    )


def _advice(folder: Path, config: ExperimentConfig) -> str:
    return (
        f"delete {folder} or name another --workdir, and start with a lower --config.optimizer.learning_rate "
        f"or a --config.optimizer.warmup_steps above {config.optimizer.warmup_steps}"
    )
