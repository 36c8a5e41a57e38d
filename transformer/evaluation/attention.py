"""What a trained model attends to (paper, figures 3 to 5)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, PyTree

from transformer.config import UserError


class AttentionWeights(NamedTuple):
    """The weights of every layer and head for one sentence pair; each row of keys sums to 1.

    A recurrent decoder has one layer and head of cross-attention, and no other.

    Attributes:
      encoder: self-attention of the source.
      decoder: causal self-attention of the shifted target: query i reads piece i - 1 and predicts piece i.
      cross: from that query to the source.
    """

    encoder: Float[np.ndarray, "layers h s s"] | None
    decoder: Float[np.ndarray, "layers h t t"] | None
    cross: Float[np.ndarray, "layers h t s"]


def attention_weights(
    model: nn.Module, params: PyTree, source: list[int], target: list[int]
) -> AttentionWeights:
    """Attention while `target` is read after `source`; both are pieces closed by EOS.

    Raises:
      UserError: the model attends to nothing.
    """
    pair = (jnp.array([source], jnp.int32), jnp.array([target], jnp.int32))
    _, sown = model.apply({"params": params}, *pair, mutable=["intermediates"])
    if not sown:
        raise UserError(f"model.kind={model.config.kind!r} has no attention to show")
    stacks = sown["intermediates"]
    if "weights" in stacks["decoder"]:
        return AttentionWeights(None, None, np.stack([stacks["decoder"]["weights"][0][0]]))

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
