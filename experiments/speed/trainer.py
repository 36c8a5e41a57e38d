"""Runs the train step of a config on one device, in the same way as the training loop."""

import jax
from jaxtyping import PyTree

from transformer.config import ExperimentConfig
from transformer.model import init_params
from transformer.tasks import task_type
from transformer.training.parallelism import Single, put
from transformer.training.train_step import init_state, make_train_step
from transformer.training.trainable import Hyperparameters, Totals
from transformer.training.utilization import step_flops


class Trainer:
    """Trains a model that starts with random weights.

    Attributes:
      state: the current training state.
    """

    def __init__(self, config: ExperimentConfig):
        task = task_type(config)
        model = task.planned_model(config)
        self._loss_fn = task.loss_fn(config, model)
        self._parallelism, self._parts = Single(), config.train.accumulation
        self.state = put(self._parallelism, init_state(init_params(model, 0), config))
        self._step = make_train_step(self._loss_fn, config, self._parallelism)
        self._key, self._hyperparameters = jax.random.key(0), Hyperparameters.from_config(config)

    def shard(self, batch: PyTree) -> PyTree:
        """Moves a batch to the device."""
        return self._parallelism.shard(batch, self._parts)

    def step(self, batch: PyTree) -> Totals:
        """Makes one update. Returns the totals of the update without waiting for the computation."""
        self.state, totals, _ = self._step(self.state, batch, self._key, self._hyperparameters)
        return totals

    def flops(self, batch: PyTree) -> int:
        """Returns the FLOPs of the matrix products of an update; see `step_flops`."""
        return step_flops(self._loss_fn, self.state.params, batch, self._hyperparameters)
