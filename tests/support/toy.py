"""A regression task without tokens, so small that a whole run takes a second."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transformer.batch import TokenBatch
from transformer.config import (
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    build_section,
    option,
    result_hash,
)
from transformer.model.dropout import hash_bits
from transformer.tasks.task import Evaluated, LoadedModel, Task
from transformer.training.metric_log import add_totals

BATCH_SIZE, WIDTH, NUM_EXAMPLES = 8, 3, 40


@dataclasses.dataclass(frozen=True)
class RegressionOptions:
    """Options of the task's data."""

    slope: float = option(2.0, not_in_paper="a toy")


class Regression(Task):
    """Fits a weight vector to y = slope * sum(x). Dropout drops channels of x."""

    records = "examples"
    criterion = "loss"
    steps_per_epoch = NUM_EXAMPLES // BATCH_SIZE

    def __init__(self, config):
        self.config = config
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(NUM_EXAMPLES, WIDTH)).astype(np.float32)
        self.y = config.data.options["slope"] * self.x.sum(axis=1)
        self.identity = {"config": result_hash(config), "data": f"slope {config.data.options['slope']}"}
        self.metadata = {"width": WIDTH}

    @classmethod
    def resolve(cls, config):
        options = build_section(RegressionOptions, config.data.options, "data.options.")
        data = dataclasses.replace(config.data, options=dataclasses.asdict(options))
        return dataclasses.replace(config, data=data)

    @classmethod
    def prepare(cls, config, progress=None):
        return cls(config)

    @classmethod
    def open(cls, config, folder, progress=None, stored=None, may_prepare=True, tokenizer=None):
        return cls(config)

    @classmethod
    def load_model(cls, config, folder, metadata):
        return LoadedModel(cls(config), tokenizer=None)

    @classmethod
    def loss_fn(cls, config, model):
        return cls.loss

    @classmethod
    def full_rows(cls, config, num_rows):
        row = {"x": jax.ShapeDtypeStruct((num_rows, WIDTH), jnp.float32)}
        numbers = jax.ShapeDtypeStruct((num_rows,), jnp.int32)
        return row | {"y": jax.ShapeDtypeStruct((num_rows,), jnp.float32), "number": numbers}

    @classmethod
    def metrics(cls, config):
        return ("loss",)

    def test_set(self, split):
        return self

    @classmethod
    def evaluate(cls, config, loaded, params, test_set, progress=None):
        """Returns the loss of the validation examples, which are the only split."""
        totals = [cls.loss(params, batch, None, None)[1] for batch in test_set.validation_batches()]
        return Evaluated(test_set.summary(add_totals(totals)))

    def init(self, seed):
        return {
            "dense": {"kernel": jax.random.normal(jax.random.key(seed), (WIDTH, 1))},
            "bias": jnp.zeros(1),
        }

    @staticmethod
    def loss(params, batch, key, hyperparameters):
        x = batch["x"]
        if key is not None:
            rate = hyperparameters.dropout_rate
            x = jnp.where(uniform(key, batch["number"]) >= rate, x / (1 - rate), 0)
        error = (x @ params["dense"]["kernel"])[:, 0] + params["bias"] - batch["y"]
        loss = jnp.sum(jnp.square(error), where=batch["number"] > 0)
        return loss, {"loss": loss, "count": jnp.sum(batch["number"] > 0, dtype=jnp.float32)}

    def batches(self, first_step):
        for step in range(first_step, self.config.train.steps):
            yield self.batch(np.arange(BATCH_SIZE) + step * BATCH_SIZE)

    def example_ids(self, step):
        return ((np.arange(BATCH_SIZE) + step * BATCH_SIZE) % NUM_EXAMPLES).tolist()

    def validation_batches(self):
        yield self.batch(np.arange(NUM_EXAMPLES))

    def batch(self, numbers):
        """The examples with these indices. In the batch, "number" is the index plus one; 0 marks padding."""
        numbers = numbers % NUM_EXAMPLES
        return {"x": self.x[numbers], "y": self.y[numbers], "number": (numbers + 1).astype(np.int32)}

    def summary(self, totals):
        return {"loss": totals["loss"] / totals["count"]}


def uniform(key, numbers):
    """Random numbers in [0, 1] for the channels of examples, from the hash of dropout masks."""
    numbers = numbers[:, None]
    examples = TokenBatch(numbers, segment_ids=numbers, positions=jnp.zeros_like(numbers))
    bits = hash_bits(jax.random.key_data(key)[-1], examples, WIDTH)[:, 0]
    return bits.astype(jnp.float32) / 2.0**32


def toy_config(**train) -> ExperimentConfig:
    """A resolved config of the toy task, with 20 steps and a validation every 8 steps."""
    config = ExperimentConfig(
        task="regression",
        model=ModelConfig(dropout_rate=0.1),
        optimizer=OptimizerConfig(warmup_steps=5, learning_rate=0.1),
        train=TrainConfig(
            **{"steps": 20, "log_every": 1, "validate_every": 8, "keep_last": 2, "parallelism": "single"}
            | train
        ),
    )
    return Regression.resolve(config)
