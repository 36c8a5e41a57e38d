"""Attention weights of a trained model (paper, figures 3 to 5)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from transformer.batch import TokenBatch
from transformer.config import BOS, UserError
from transformer.data.batching import bucket, pad_rows
from transformer.model.decoder_only import DecoderOnly, join
from transformer.model.encoder_decoder import EncoderDecoder


class AttentionWeights(NamedTuple):
    """Weights of every layer and head for one sentence pair. The weights of a query sum to 1.

    A recurrent decoder has cross-attention only, with one layer and one head; a language model has
    self-attention of the decoder only. In a decoder-only model that translates, all three are parts of one
    self-attention: within the source, within the target, and from target to source. So the weights of a query
    in `decoder` and `cross` sum to 1 together, and its source begins with BOS.

    Attributes:
      encoder: self-attention of the source.
      decoder: causal self-attention of the shifted target: query i reads token i - 1 and predicts token i.
      cross: attention from the queries of `decoder` to the source.
    """

    encoder: Float[np.ndarray, "layers h s s"] | None
    decoder: Float[np.ndarray, "layers h t t"] | None
    cross: Float[np.ndarray, "layers h t s"] | None


def attention_weights(
    model: EncoderDecoder, params: PyTree, source: list[int], target: list[int]
) -> AttentionWeights:
    """Returns the weights with which the model predicts `target` from `source`.

    Args:
      model: the model.
      params: the parameters of the model.
      source: tokens, closed by EOS.
      target: tokens, closed by EOS.

    Raises:
      UserError: the model has no attention.
    """
    limits = model.max_lengths
    rows = _padded(source, limits.source), _padded(target, limits.target)
    intermediates = jax.device_get(_intermediates(model, params, *rows))
    if not intermediates:
        raise UserError(
            f"model.kind is {model.config.kind!r}, which has no attention to show; use a run of another kind"
        )
    encoder, decoder = intermediates.get("encoder", {}), intermediates["decoder"]
    num_source, num_target = len(source), len(target)
    if isinstance(model, DecoderOnly):
        joint = _stacked(decoder, "self_attention")
        sides = slice(0, num_source), slice(num_source, num_source + num_target)
        parts = ((0, 0), (1, 1), (1, 0))
        return AttentionWeights(*(joint[..., sides[query], sides[key]] for query, key in parts))
    if "weights" in decoder:
        cross = decoder["weights"][0][0][:, :num_target, :num_source]
        return AttentionWeights(None, None, np.stack([cross]))
    return AttentionWeights(
        _stacked(encoder, "self_attention")[..., :num_source, :num_source],
        _stacked(decoder, "self_attention")[..., :num_target, :num_target],
        _stacked(decoder, "cross_attention")[..., :num_target, :num_source],
    )


def continuation_weights(model: DecoderOnly, params: PyTree, tokens: list[int]) -> AttentionWeights:
    """Returns the weights with which a language model predicts `tokens`, the first of them from BOS."""
    inputs = _padded([BOS, *tokens[:-1]], model.max_length)
    decoder = jax.device_get(_continuation_intermediates(model, params, inputs))["decoder"]
    return AttentionWeights(
        None, _stacked(decoder, "self_attention")[..., : len(tokens), : len(tokens)], None
    )


def mask_params(params: PyTree) -> PyTree:
    """Returns parameters with which a query attends to every key that it may see, and to no other key."""
    return jax.tree.map(np.zeros_like, params)


@functools.partial(jax.jit, static_argnames="model")
def attention_entropies(
    model: EncoderDecoder, params: PyTree, source: TokenBatch, target: TokenBatch
) -> dict[str, Float[Array, ""]]:
    """Returns the entropy of the attention weights of each module, in nats, averaged over heads and queries.

    A query that attends to n keys equally has an entropy of log n.

    Args:
      model: the model.
      params: the parameters of the model.
      source: the source sentences.
      target: the target sentences.

    Returns:
      The entropies by the path of the module, such as `encoder.layers_0.self_attention`; an empty dict for a
      model without attention.
    """
    state = model.apply({"params": params}, source, target, mutable=["intermediates"])[1]
    queries = {"encoder": source, "decoder": target}
    if isinstance(model, DecoderOnly):
        queries["decoder"] = join(source, target).batch
    entropies = {}
    for path, weights in jax.tree_util.tree_flatten_with_path(state.get("intermediates", {}))[0]:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][:-1]
        is_query = (queries[names[0]].segment_ids != 0)[:, None]
        entropy = jnp.sum(jax.scipy.special.entr(weights), axis=-1)  # [b, h, q]
        mean = jnp.sum(entropy * is_query) / (jnp.sum(is_query) * weights.shape[1])
        entropies[".".join(names)] = mean
    return entropies


def _stacked(stack: PyTree, attention: str) -> Float[np.ndarray, "layers h q k"]:
    layers = [stack[f"layers_{number}"] for number in range(len(stack))]
    return np.stack([layer[attention]["weights"][0][0] for layer in layers])


@functools.partial(jax.jit, static_argnames="model")
def _intermediates(
    model: EncoderDecoder, params: PyTree, source: Int[Array, "1 s"], target: Int[Array, "1 t"]
) -> PyTree:
    batches = TokenBatch.from_tokens(source), TokenBatch.from_tokens(target)
    return model.apply({"params": params}, *batches, mutable=["intermediates"])[1].get("intermediates", {})


@functools.partial(jax.jit, static_argnames="model")
def _continuation_intermediates(model: DecoderOnly, params: PyTree, inputs: Int[Array, "1 t"]) -> PyTree:
    batch = TokenBatch.from_tokens(inputs)
    apply = functools.partial(model.apply, {"params": params}, method="next_token_logit_factors")
    return apply(batch, mutable=["intermediates"])[1]["intermediates"]


def _padded(tokens: list[int], limit: int | None) -> Int[np.ndarray, "1 s"]:
    """Returns a batch of one row. Its padded length is one of few, so that few programs are compiled."""
    return pad_rows([tokens], max(len(tokens), bucket(len(tokens), limit)))
