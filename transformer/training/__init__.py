"""Training: optimizers, the train step, parallelism, the loop and checkpoints.

This package depends on no task: `train` takes the task, a `Trainable`, as an argument.
"""

from transformer.training.averaging import average
from transformer.training.checkpoints import Checkpoints
from transformer.training.digests import digest
from transformer.training.loop import train
from transformer.training.metric_log import read_metrics
from transformer.training.optimizers import OPTIMIZERS, SCHEDULES
from transformer.training.parallelism import PARALLELISMS, make_parallelism
from transformer.training.session import Observer, Outcome
from transformer.training.train_step import TrainState, init_state, make_eval_step, make_train_step
from transformer.training.trainable import Hyperparameters, Trainable

__all__ = [
    "OPTIMIZERS",
    "PARALLELISMS",
    "SCHEDULES",
    "Checkpoints",
    "Hyperparameters",
    "Observer",
    "Outcome",
    "TrainState",
    "Trainable",
    "average",
    "digest",
    "init_state",
    "make_eval_step",
    "make_parallelism",
    "make_train_step",
    "read_metrics",
    "train",
]
