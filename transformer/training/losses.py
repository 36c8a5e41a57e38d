"""The training objective (paper, section 5.4): cross-entropy in nats, with label smoothing."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer.model.embedding import LogitFactors

# Tokens whose logits are in memory at the same time.
CHUNK = 1_024


class CrossEntropy(NamedTuple):
    """The loss of each token and its gradient.

    Attributes:
      loss: cross-entropy with label smoothing and z-loss, in nats.
      nll: cross-entropy without label smoothing and z-loss, in nats.
      correct: whether no class has a higher logit than the label.
      gradient: of `loss`, with respect to the logits.
    """

    loss: Float[Array, "n"]
    nll: Float[Array, "n"]
    correct: Bool[Array, "n"]
    gradient: Float[Array, "n v"]


def smoothed_cross_entropy(
    logits: Float[Array, "n v"],
    labels: Int[Array, "n"],
    epsilon: Float[Array, ""] | float,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Cross-entropy whose target is the label, mixed with the uniform distribution over all V classes.

    The target distribution is q = (1 - eps) onehot(label) + eps / V (Szegedy et al. 2016, section 7). Then
    -sum(q log p) = logsumexp(z) - (1 - eps) z[label] - eps mean(z), which needs no one-hot matrix, and its
    gradient is p - q.

    Differs from the paper if `z_loss` is above 0: z_loss log(Z)^2 is added, with log Z = logsumexp(z), which
    keeps log Z near 0 (Chowdhery et al. 2022, section 5). Its gradient is 2 z_loss log(Z) p.
    """
    classes = logits.shape[-1]
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    is_label = labels[:, None] == jnp.arange(classes)[None]
    loss = log_normalizer - (1 - epsilon) * label_logit - epsilon * logits.mean(axis=-1)
    nll = log_normalizer - label_logit
    # Not an argmax, which XLA does not vectorize on CPU.
    correct = label_logit >= logits.max(axis=-1)
    probabilities = jnp.exp(logits - log_normalizer[:, None])
    gradient = probabilities - jnp.where(is_label, 1 - epsilon + epsilon / classes, epsilon / classes)
    if z_loss > 0:
        loss += z_loss * log_normalizer**2
        gradient += 2 * z_loss * log_normalizer[:, None] * probabilities
    return CrossEntropy(loss, nll, correct, gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def summed_cross_entropy(
    factors: LogitFactors,
    labels: Int[Array, "n"],
    counts: Bool[Array, "n"],
    epsilon: Float[Array, ""] | float,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Returns training loss, plain loss and number of correct predictions, summed where `counts` is true.

    The logits are computed `CHUNK` tokens at a time and never stored: the gradient of a chunk is computed
    while its logits are in memory. Of the three sums only the first has a gradient.
    """
    return _scan_chunks(factors, labels, counts, epsilon, z_loss, with_gradient=False)[0]


def _scan_chunks(factors, labels, counts, epsilon, z_loss, with_gradient):
    """Returns the sums, and the gradient of the first sum with respect to the factors."""
    num_chunks = -(-len(labels) // CHUNK)
    size = -(-len(labels) // num_chunks)

    def split(x):
        x = jnp.pad(x, ((0, num_chunks * size - len(x)),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(num_chunks, size, *x.shape[1:])

    def add(carry, chunk):
        vectors, labels, counts = chunk
        sums, table_gradient = carry
        logits = LogitFactors(vectors, factors.table).logits()
        entropy = smoothed_cross_entropy(logits, labels, epsilon, z_loss)
        sums += jnp.stack([jnp.sum(x, where=counts, dtype=jnp.float32) for x in entropy[:3]])
        if not with_gradient:
            return (sums, table_gradient), None
        gradient = jnp.where(counts[:, None], entropy.gradient, 0).astype(vectors.dtype)
        table_gradient += jnp.einsum("nv,nm->vm", gradient, vectors, preferred_element_type=jnp.float32)
        return (sums, table_gradient), jnp.einsum("nv,vm->nm", gradient, factors.table.astype(vectors.dtype))

    zeros = jnp.zeros(factors.table.shape if with_gradient else (), jnp.float32)
    chunks = tuple(map(split, (factors.vectors, labels, counts)))
    (sums, table_gradient), vectors = jax.lax.scan(add, (jnp.zeros(3), zeros), chunks)
    if with_gradient:
        vectors = vectors.reshape(-1, vectors.shape[-1])[: len(labels)]
    return tuple(sums), LogitFactors(vectors, table_gradient)


def _forward(factors, labels, counts, epsilon, z_loss):
    return _scan_chunks(factors, labels, counts, epsilon, z_loss, with_gradient=True)


def _backward(z_loss, gradient, cotangents):
    del z_loss  # the gradient includes it
    return jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradient), None, None, None


summed_cross_entropy.defvjp(_forward, _backward)
