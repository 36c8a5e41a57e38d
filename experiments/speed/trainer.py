"""Runs the train step of a config on one device, in the same way as the training loop."""

import jax

from transformer.batch import Batch
from transformer.config import ExperimentConfig
from transformer.model import build_model, init_params
from transformer.tasks.translation import Translation
from transformer.training.parallelism import Single, put
from transformer.training.train_step import init_state, make_train_step
from transformer.training.trainable import Hyperparameters, Totals


class Trainer:
    """Trains a model that starts with random weights.

    Attributes:
      model: the model.
      state: the current training state.
    """

    def __init__(self, config: ExperimentConfig):
        self.model = build_model(config.model, config.data.vocab_size)
        self._parallelism, self._parts = Single(), config.train.accumulation
        self.state = put(self._parallelism, init_state(init_params(self.model, 0), config))
        self._step = make_train_step(Translation.loss_fn(config, self.model), config, self._parallelism)
        self._key, self._hyperparameters = jax.random.key(0), Hyperparameters.from_config(config)

    def shard(self, batch: Batch) -> Batch:
        """Moves a batch to the device."""
        return self._parallelism.shard(batch, self._parts)

    def step(self, batch: Batch) -> Totals:
        """Makes one update. Returns the totals of the update without waiting for the computation."""
        self.state, totals, _ = self._step(self.state, batch, self._key, self._hyperparameters)
        return totals
