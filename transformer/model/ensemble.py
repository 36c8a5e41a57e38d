"""Ensembles: several models whose probabilities are averaged."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from transformer.batch import TokenBatch
from transformer.model.encoder_decoder import EncoderDecoder, MaxLengths


class Ensemble(nn.Module):
    """Models with the same vocabulary that predict together: log p = log mean_i p_i.

    The parameters of the models are called `models_0`, `models_1`, ...; see `ensemble`.
    """

    models: tuple[EncoderDecoder, ...]

    @property
    def max_lengths(self) -> MaxLengths:
        """The longest sequences that all of the models accept."""
        source, target = zip(*(model.max_lengths for model in self.models), strict=True)
        return MaxLengths(_smallest(source), _smallest(target))

    def __call__(self, source: TokenBatch, target: TokenBatch) -> Float[Array, "b t v"]:
        """Returns log-probabilities of each target token, given the source and earlier target tokens."""
        return _log_mean_softmax([model(source, target) for model in self.models])

    def start_decoding(
        self, source_tokens: Int[Array, "b s"], num_hypotheses: int, cache_length: int
    ) -> tuple[PyTree, PyTree]:
        """Returns the caches and the states of all models; see `EncoderDecoder.start_decoding`."""
        started = [model.start_decoding(source_tokens, num_hypotheses, cache_length) for model in self.models]
        return tuple(zip(*started, strict=True))

    @nn.nowrap
    def resize_cache(self, state: PyTree, length: int) -> PyTree:
        """Resizes the state of each model; see `EncoderDecoder.resize_cache`."""
        states = zip(self.models, state, strict=True)
        return tuple(model.resize_cache(model_state, length) for model, model_state in states)

    def decode_step(
        self,
        encoder_cache: PyTree,
        state: PyTree,
        tokens: Int[Array, "b n"],
        parents: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], PyTree]:
        """Returns log-probabilities and the states of all models; see `EncoderDecoder.decode_step`."""
        logits, states = [], []
        for model, model_cache, model_state in zip(self.models, encoder_cache, state, strict=True):
            model_logits, model_state = model.decode_step(model_cache, model_state, tokens, parents, index)
            logits.append(model_logits)
            states.append(model_state)
        return _log_mean_softmax(logits), tuple(states)


def ensemble(models: Sequence[EncoderDecoder], params: Sequence[PyTree]) -> tuple[Ensemble, PyTree]:
    """Returns an ensemble of models, and its parameters."""
    # The models are cloned, since Flax shares the parameters of a module that occurs twice.
    joined = Ensemble(tuple(model.clone() for model in models))
    return joined, {f"models_{number}": model_params for number, model_params in enumerate(params)}


def _smallest(lengths: Sequence[int | None]) -> int | None:
    return min((length for length in lengths if length is not None), default=None)


def _log_mean_softmax(logits: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
    log_probs = jnp.stack([jax.nn.log_softmax(model_logits) for model_logits in logits])
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(logits))
