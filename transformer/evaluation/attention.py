"""What a trained model attends to (paper, figures 3 to 5)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, PyTree


class AttentionWeights(NamedTuple):
    """The weights of every layer and head for one sentence pair; each row of keys sums to 1.

    Attributes:
      encoder: self-attention of the source.
      decoder: causal self-attention of the shifted target: query i reads piece i - 1 and predicts piece i.
      cross: from that query to the source.
    """

    encoder: Float[np.ndarray, "layers h s s"]
    decoder: Float[np.ndarray, "layers h t t"]
    cross: Float[np.ndarray, "layers h t s"]


def attention_weights(
    model: nn.Module, params: PyTree, source: list[int], target: list[int]
) -> AttentionWeights:
    """Attention while `target` is read after `source`; both are pieces closed by EOS."""
    pair = (jnp.array([source], jnp.int32), jnp.array([target], jnp.int32))
    _, sown = model.apply({"params": params}, *pair, mutable=["intermediates"])
    stacks = sown["intermediates"]

    def collect(stack, attention):
        layers = stacks[stack]
        return np.stack(
            [layers[f"layers_{number}"][attention]["weights"][0][0] for number in range(len(layers))]
        )

    return AttentionWeights(
        collect("encoder", "self_attention"),
        collect("decoder", "self_attention"),
        collect("decoder", "cross_attention"),
    )
