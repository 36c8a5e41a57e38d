"""Several models that predict as one: the mean of their probabilities."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from transformer.model.encoder_decoder import EncoderDecoder, Longest


class Ensemble(nn.Module):
    """Models of one vocabulary, in the place of one: log p = log mean_i p_i.

    Its parameters are theirs, as `models_0`, `models_1`, ...; see `ensemble`.
    """

    models: tuple[EncoderDecoder, ...]

    @property
    def longest(self) -> Longest:
        """Pieces of the longest sequences that all of them can place."""
        sides = zip(*(one.longest for one in self.models), strict=True)
        return Longest(*(min((one for one in side if one is not None), default=None) for side in sides))

    def __call__(self, source: Int[Array, "b s"], target: Int[Array, "b t"]) -> Float[Array, "b t v"]:
        """Log-probabilities of each target piece given the source and the target pieces before it."""
        return _mean([one(source, target) for one in self.models])

    def start(self, source: Int[Array, "b s"], hypotheses: int, length: int) -> tuple[PyTree, PyTree]:
        """Memory and state of each model."""
        both = [one.start(source, hypotheses, length) for one in self.models]
        return tuple(zip(*both, strict=True))

    @nn.nowrap
    def grow(self, state: PyTree, length: int) -> PyTree:
        """The states with room for `length` pieces for each hypothesis."""
        return tuple(one.grow(own, length) for one, own in zip(self.models, state, strict=True))

    def step(
        self,
        memory: PyTree,
        state: PyTree,
        token: Int[Array, "b n"],
        parent: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], PyTree]:
        """Log-probabilities of the next piece, and the state of each model."""
        each = zip(self.models, memory, state, strict=True)
        logits, states = zip(*(one.step(*own, token, parent, index) for one, *own in each), strict=True)
        return _mean(logits), states


def ensemble(models: list[EncoderDecoder], params: list[PyTree]) -> tuple[Ensemble, PyTree]:
    """The models as one, and its parameters."""
    # Flax would take a module that comes twice for one whose weights are shared.
    return Ensemble(tuple(one.clone() for one in models)), {
        f"models_{number}": one for number, one in enumerate(params)
    }


def _mean(logits) -> Float[Array, "*b v"]:
    log_probs = jnp.stack([jax.nn.log_softmax(one) for one in logits])
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(logits))
