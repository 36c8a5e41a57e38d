"""Operations on the logits of the whole vocabulary, the most expensive part of a search step on CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK_SIZE = 64  # tokens per chunk of the vocabulary


def log_normalizer(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """Returns log sum exp, which is subtracted from a logit to get a log-probability."""
    return jax.nn.logsumexp(logits, axis=-1)


def top_k(logits: Float[Array, "*b v"], k: int) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
    """Returns the `k` largest logits and their tokens, largest first; ties are in the order of the tokens.

    Equals `jax.lax.top_k`, which sorts the whole vocabulary. This function divides the vocabulary into
    chunks. The `k` largest logits lie in the `k` chunks with the largest maxima, so only these chunks are
    sorted, which is faster on CPU.
    """
    *batch, vocab_size = logits.shape
    if k * CHUNK_SIZE >= vocab_size:
        return tuple(jax.lax.top_k(logits, k))
    num_chunks = -(-vocab_size // CHUNK_SIZE)
    padding = [(0, 0)] * len(batch) + [(0, num_chunks * CHUNK_SIZE - vocab_size)]
    chunks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(*batch, num_chunks, CHUNK_SIZE)
    # The chunks stay in the order of the vocabulary, so tokens with equal logits do too.
    best_chunks = jnp.sort(jax.lax.top_k(chunks.max(axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(chunks, best_chunks[..., None], axis=-2)
    values, index = jax.lax.top_k(candidates.reshape(*batch, k * CHUNK_SIZE), k)
    chunk = jnp.take_along_axis(best_chunks, index // CHUNK_SIZE, axis=-1)
    return values, chunk * CHUNK_SIZE + index % CHUNK_SIZE
