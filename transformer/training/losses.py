"""The training objective (paper, section 5.4): cross-entropy in nats, with label smoothing."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from transformer.data.pipeline import Batch
from transformer.model.dropout import Dropout
from transformer.model.embedding import Factors
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


class CrossEntropy(NamedTuple):
    """The loss of each piece, and its slope.

    Attributes:
      loss: smoothed, nats.
      nll: plain, nats.
      correct: whether no class has a higher logit than the label.
      gradient: of `loss`, with respect to the logits.
    """

    loss: Float[Array, "n"]
    nll: Float[Array, "n"]
    correct: Bool[Array, "n"]
    gradient: Float[Array, "n v"]


def smoothed_cross_entropy(
    logits: Float[Array, "n v"], labels: Int[Array, "n"], epsilon: Float[Array, ""] | float
) -> CrossEntropy:
    """Cross-entropy with the label mixed with the uniform distribution over all V classes.

    The target distribution is q = (1 - eps) onehot(label) + eps / V (Szegedy et al. 2016, section 7). Then
    -sum(q log p) = logsumexp(z) - (1 - eps) z[label] - eps mean(z), which needs no one-hot matrix, and its
    gradient is p - q.
    """
    classes = logits.shape[-1]
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    is_label = labels[:, None] == jnp.arange(classes)
    return CrossEntropy(
        loss=log_normalizer - (1 - epsilon) * label_logit - epsilon * logits.mean(axis=-1),
        nll=log_normalizer - label_logit,
        # Not an argmax, which XLA does not vectorise on CPU.
        correct=label_logit >= logits.max(axis=-1),
        gradient=jnp.exp(logits - log_normalizer[:, None])
        - jnp.where(is_label, 1 - epsilon + epsilon / classes, epsilon / classes),
    )


@jax.custom_vjp
def summed_cross_entropy(
    factors: Factors, labels: Int[Array, "n"], counts: Bool[Array, "n"], epsilon: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Smoothed loss, plain loss and right predictions, summed over the pieces that count.

    The logits are made some thousand pieces at a time and never kept: with a gradient asked for, each part's
    is worked out while its logits are at hand. Of the three sums only the first has a gradient.
    """
    return _by_parts(factors, labels, counts, epsilon, with_gradient=False)[0]


PART = 1_024  # pieces whose logits are held at once


def _by_parts(factors, labels, counts, epsilon, with_gradient):
    """The sums, and the gradient of the first with respect to the factors."""
    number = -(-len(labels) // PART)
    size = -(-len(labels) // number)

    def cut(x):
        x = jnp.pad(x, ((0, number * size - len(x)),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(number, size, *x.shape[1:])

    def add(totals, part):
        x, labels, counts = part
        sums, slope = totals
        found = smoothed_cross_entropy(Factors(x, factors.table).logits(), labels, epsilon)
        sums += jnp.stack([jnp.sum(one, where=counts, dtype=jnp.float32) for one in found[:3]])
        if not with_gradient:
            return (sums, slope), None
        gradient = jnp.where(counts[:, None], found.gradient, 0).astype(x.dtype)
        slope += jnp.einsum("nv,nm->vm", gradient, x, preferred_element_type=jnp.float32)
        return (sums, slope), jnp.einsum("nv,vm->nm", gradient, factors.table.astype(x.dtype))

    zeros = jnp.zeros(factors.table.shape if with_gradient else (), jnp.float32)
    (sums, slope), x = jax.lax.scan(add, (jnp.zeros(3), zeros), tuple(map(cut, (factors.x, labels, counts))))
    if with_gradient:
        x = x.reshape(-1, x.shape[-1])[: len(labels)]
    return tuple(sums), Factors(x, slope)


def _forward(factors, labels, counts, epsilon):
    return _by_parts(factors, labels, counts, epsilon, with_gradient=True)


def _backward(gradient, slopes):
    return jax.tree.map(lambda g: (g * slopes[0]).astype(g.dtype), gradient), None, None, None


summed_cross_entropy.defvjp(_forward, _backward)


def make_loss_fn(model: nn.Module) -> LossFn:
    """The pure function (params, batch, key, hyper) -> (summed loss, sums); without a key, no dropout."""

    def loss_fn(params, batch, key, hyper):
        source, target = batch.source, batch.target
        factors = model.apply(
            {"params": params},
            source.tokens,
            target.tokens,
            Layout(source.segments, source.positions),
            Layout(target.segments, target.positions),
            None if key is None else Dropout(key, hyper.dropout_rate),
            method="factors",
        )
        counts = target.segments != 0
        loss, nll, correct = summed_cross_entropy(
            Factors(factors.x.reshape(-1, factors.x.shape[-1]), factors.table),
            target.tokens.reshape(-1),
            counts.reshape(-1),
            hyper.label_smoothing,
        )
        sums = Sums(
            loss=loss,
            nll=nll,
            correct=correct,
            tokens=jnp.sum(counts, dtype=jnp.float32),
            source_tokens=jnp.sum(source.segments != 0, dtype=jnp.float32),
            characters=jnp.sum(batch.characters, dtype=jnp.float32),
        )
        return sums.loss, sums

    return loss_fn
