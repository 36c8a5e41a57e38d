"""The training objective (paper, section 5.4): cross-entropy in nats, with label smoothing."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from transformer.data.pipeline import Batch
from transformer.model.dropout import Dropout
from transformer.model.masks import Layout


class Hyper(NamedTuple):
    """What may change from step to step without a recompilation."""

    learning_rate: Float[Array, ""] | float  # at the peak
    dropout_rate: Float[Array, ""] | float
    label_smoothing: Float[Array, ""] | float


class Sums(NamedTuple):
    """Totals over the target pieces of a batch, to be added up over parts, devices, steps and batches."""

    loss: Float[Array, ""]  # smoothed, nats
    nll: Float[Array, ""]  # plain, nats
    correct: Float[Array, ""]  # pieces whose most probable prediction is right
    tokens: Float[Array, ""]  # target pieces
    source_tokens: Float[Array, ""]
    characters: Float[Array, ""]  # of the raw target sentences


LossFn = Callable[[PyTree, Batch, Key[Array, ""] | None, Hyper], tuple[Float[Array, ""], Sums]]


def smoothed_cross_entropy(
    logits: Float[Array, "b t v"], labels: Int[Array, "b t"], epsilon: Float[Array, ""] | float
) -> tuple[Float[Array, "b t"], Float[Array, "b t"], Bool[Array, "b t"]]:
    """Cross-entropy with the label mixed with the uniform distribution over all V classes.

    The target distribution is q = (1 - eps) onehot(label) + eps / V (Szegedy et al. 2016, section 7), and
    -sum(q log p) = logsumexp(z) - (1 - eps) z[label] - eps mean(z), which needs no one-hot matrix.

    Returns:
      The smoothed and the plain loss of each piece, in nats, and whether no class has a higher logit.
    """
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A compare fused into the sum: unlike a gather's, its gradient is no scatter.
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])
    label_logit = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    smoothed = log_normalizer - (1 - epsilon) * label_logit - epsilon * logits.mean(axis=-1)
    # Not an argmax, which XLA does not vectorise on CPU.
    correct = label_logit >= jax.lax.stop_gradient(logits).max(axis=-1)
    return smoothed, log_normalizer - label_logit, correct


def make_loss_fn(model: nn.Module) -> LossFn:
    """The pure function (params, batch, key, hyper) -> (summed loss, sums); without a key, no dropout."""

    def loss_fn(params, batch, key, hyper):
        source, target = batch.source, batch.target
        logits = model.apply(
            {"params": params},
            source.tokens,
            target.tokens,
            Layout(source.segments, source.positions),
            Layout(target.segments, target.positions),
            None if key is None else Dropout(key, hyper.dropout_rate),
        )
        loss, nll, correct = smoothed_cross_entropy(logits, target.tokens, hyper.label_smoothing)
        counts = target.segments != 0
        sums = Sums(
            loss=jnp.sum(loss, where=counts),
            nll=jnp.sum(nll, where=counts),
            correct=jnp.sum(correct, where=counts, dtype=jnp.float32),
            tokens=jnp.sum(counts, dtype=jnp.float32),
            source_tokens=jnp.sum(source.segments != 0, dtype=jnp.float32),
            characters=jnp.sum(batch.characters, dtype=jnp.float32),
        )
        return sums.loss, sums

    return loss_fn
