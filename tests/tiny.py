"""A model whose sizes all differ, so that no two axes can be swapped unseen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import TransformerConfig

VOCAB = 13
SOURCE = [[4, 5, 6, 7, 2], [8, 9, 2, 0, 0]]
TARGET = [[10, 11, 2, 0], [12, 4, 5, 2]]


def tiny_config(**changes) -> TransformerConfig:
    """2 layers, 3 heads, d_k 6, d_v 7, d_model 22, d_ff 11."""
    config = TransformerConfig(
        num_layers=2, d_model=22, d_ff=11, num_heads=3, d_k=6, d_v=7, max_positions=17, dropout_rate=0.3
    )
    return dataclasses.replace(config, **changes)


def logits(model, params, *args, **kwargs) -> np.ndarray:
    """The model's output as NumPy."""
    return np.asarray(jax.jit(model.apply)({"params": params}, *args, **kwargs))


def as_int(rows) -> jnp.ndarray:
    return jnp.asarray(rows, jnp.int32)
