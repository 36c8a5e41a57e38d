"""States that are functions of their step, and their checkpoints."""

import dataclasses

import jax
import numpy as np

from tests.support.toy import toy_config
from transformer.config import OptimizerConfig
from transformer.training.checkpoints import Checkpoints
from transformer.training.train_step import init_state

IDENTITY = {"identity": {"config": "a", "data": "b"}}  # every checkpoint has these metadata


def state_at(step, optimizer="adam"):
    """A state whose weights and optimizer state are functions of the step."""
    params = {"a": {"kernel": np.full((3, 5), step, np.float32)}, "b": np.arange(7, dtype=np.float32)}
    config = dataclasses.replace(toy_config(), optimizer=OptimizerConfig(name=optimizer, clip_norm=1.0))
    state = init_state(params, config)
    opt_state = jax.tree.map(lambda x: x + np.asarray(step, x.dtype), state.opt_state)
    return state._replace(step=np.int32(step), opt_state=opt_state)


def save_states(folder, criteria, keep_last=10):
    """Saves the states at steps 10, 20, ..., one for each criterion."""
    checkpoints = Checkpoints(folder, keep_last)
    for number, criterion in enumerate(criteria, start=1):
        checkpoints.save(state_at(number * 10), {**IDENTITY, "tokens_seen": number}, criterion)
    checkpoints.close()


def truncate(folder):
    """Cuts all files of a folder to half of their size."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
