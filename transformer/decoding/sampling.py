"""Sampling of the next token: temperature, top-k (Fan et al. 2018), nucleus (Holtzman et al. 2020)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer.decoding.top_k import top_k
from transformer.model.masks import NEG_INF

Scalar = Float[Array, ""] | float


def keep_top_k(logits: Float[Array, "*b v"], k: int) -> Float[Array, "*b v"]:
    """Masks the tokens that are less probable than the `k`-th most probable token."""
    smallest = top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= smallest, logits, NEG_INF)


def keep_top_p(logits: Float[Array, "*b v"], p: Scalar) -> Float[Array, "*b v"]:
    """Masks all but the nucleus: the smallest set of tokens with a total probability of at least `p`.

    Also keeps tokens that are as probable as the least probable token of the nucleus.
    """
    descending = jnp.sort(logits, axis=-1, descending=True)
    preceding = jnp.cumsum(jax.nn.softmax(descending), axis=-1) - jax.nn.softmax(descending)
    smallest = jnp.min(jnp.where(preceding < p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= smallest, logits, NEG_INF)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples from softmax(logits / temperature), restricted to the `top_k` tokens, then to the nucleus.

    Attributes:
      key: random key of all samples.
      sentence_ids: a number for each sentence. The samples of a sentence depend on its number, on the
        hypothesis and on the position of the token, not on the rest of the batch.
      temperature: divides the logits.
      top_k: number of most probable tokens to sample from; if None, all tokens.
      top_p: total probability that the nucleus must reach; if None, the nucleus has all tokens.
    """

    key: Key[Array, ""]
    sentence_ids: Int[Array, "b"]
    temperature: Scalar = 1.0
    top_k: int | None = None
    top_p: Scalar | None = None

    def __call__(self, logits: Float[Array, "b n v"], index: Int[Array, ""]) -> Int[Array, "b n"]:
        """Samples a token at position `index` for each hypothesis."""
        # Relative to the largest logit, so that a low temperature moves no allowed logit below NEG_INF.
        relative = (logits - logits.max(axis=-1, keepdims=True)) / self.temperature
        logits = jnp.maximum(relative, NEG_INF)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        over_hypotheses = jax.vmap(self._sample, in_axes=(None, 0, None, 0))
        over_sentences = jax.vmap(over_hypotheses, in_axes=(0, None, None, 0))
        return over_sentences(self.sentence_ids, jnp.arange(logits.shape[1]), index, logits)

    def _sample(self, sentence_id, hypothesis, index, logits):
        key = self.key
        for number in (sentence_id, hypothesis, index):
            key = jax.random.fold_in(key, number)
        return jax.random.categorical(key, logits)
