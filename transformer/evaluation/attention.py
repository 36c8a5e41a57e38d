"""What a trained model attends to (paper, figures 3 to 5)."""

import functools
import sys
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, PyTree

from transformer.config import UserError
from transformer.data.plan import bucket
from transformer.decoding.batches import padded


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
    sown = jax.device_get(
        _sown(model, params, _padded(source, model.longest.source), _padded(target, model.longest.target))
    )
    if not sown:
        raise UserError(f"model.kind={model.config.kind!r} has no attention to show")
    stacks, s, t = sown["intermediates"], len(source), len(target)
    if "weights" in stacks["decoder"]:
        return AttentionWeights(None, None, np.stack([stacks["decoder"]["weights"][0][0][:, :t, :s]]))

    def collect(stack, attention, queries, keys):
        layers = stacks[stack]
        each = [layers[f"layers_{number}"][attention]["weights"][0][0] for number in range(len(layers))]
        return np.stack(each)[..., :queries, :keys]

    return AttentionWeights(
        collect("encoder", "self_attention", s, s),
        collect("decoder", "self_attention", t, t),
        collect("decoder", "cross_attention", t, s),
    )


@functools.partial(jax.jit, static_argnums=0)
def _sown(model, params, source, target):
    return model.apply({"params": params}, source, target, mutable=["intermediates"])[1]


def _padded(pieces: list[int], longest: int | None) -> Int[np.ndarray, "1 s"]:
    """One row of a length that many sentences share, so that few programs are compiled."""
    length = max(len(pieces), min(bucket(len(pieces)), longest or sys.maxsize))
    return padded([pieces], length)
