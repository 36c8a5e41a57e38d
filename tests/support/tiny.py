"""A tiny model whose sizes all differ, so that no two axes can be swapped unnoticed."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from transformer.batch import TokenBatch
from transformer.config import BOS, PAD, ModelConfig
from transformer.model import parameter_shapes
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.positions import POSITIONS

VOCAB = 13
# The position schemes of text and of images.
SEQUENCE_SCHEMES, GRID_SCHEMES = (
    [name for name, scheme in POSITIONS.items() if inputs in scheme.inputs] for inputs in ("sequence", "grid")
)


def tiny_config(**changes) -> ModelConfig:
    """A config with 2 layers, 3 heads, d_k 6, d_v 7, d_model 22 and d_ff 11."""
    config = ModelConfig(
        num_layers=2, d_model=22, d_ff=11, num_heads=3, d_k=6, d_v=7, max_positions=17, dropout_rate=0.3
    )
    return dataclasses.replace(config, **changes)


def token_batch(sentences: Sequence[Sequence[int]], length: int | None = None) -> TokenBatch:
    """A batch with one sentence per row, padded to `length` or, if None, to the longest sentence."""
    return packed_batch([{row: sentence} for row, sentence in enumerate(sentences, start=1)], length)


def packed_batch(rows: Sequence[Mapping[int, Sequence[int]]], length: int | None = None) -> TokenBatch:
    """A batch whose rows map segment ids, in order, to the tokens of examples; padded like `token_batch`."""
    length = length or max(sum(map(len, row.values())) for row in rows)
    arrays = np.full((3, len(rows), length), PAD, np.int32)
    for number, row in enumerate(rows):
        start = 0
        for segment_id, tokens in row.items():
            end = start + len(tokens)
            arrays[:, number, start:end] = tokens, [segment_id] * len(tokens), range(len(tokens))
            start = end
    return TokenBatch(*map(jnp.asarray, arrays))


def sentence_pairs() -> tuple[TokenBatch, TokenBatch]:
    """Two sentence pairs; the first target and the second source are padded."""
    return token_batch([[4, 5, 6, 7, 2], [8, 9, 2]]), token_batch([[10, 11, 2], [12, 4, 5, 2]])


def token_shapes(num_rows: int, length: int) -> TokenBatch:
    """The shapes of a batch, to trace a function without one."""
    return TokenBatch(*[jax.ShapeDtypeStruct((num_rows, length), jnp.int32)] * 3)


def random_params(model: EncoderDecoder, seed: int = 0) -> PyTree:
    """Random parameters of a model; see `random_tree`."""
    return random_tree(parameter_shapes(model), seed)


def random_tree(shapes: PyTree, seed: int = 0) -> PyTree:
    """Random parameters of the given shapes. Initial values of norms and biases would hide errors.

    NumPy draws the values, since compiling `init_params` takes longer than most tests.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            return jnp.asarray(noise / np.sqrt(leaf.shape[0]), leaf.dtype)
        mean = {"scale": 1, "alpha": 0.5}.get(path[-1].key, 0)
        return jnp.asarray(mean + 0.1 * noise, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def mean_nll(logits, target: TokenBatch):
    """The cross-entropy per target token, in nats."""
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), target.tokens[..., None], axis=-1)[..., 0]
    return jnp.mean(nll, where=target.segment_ids != 0)


def train(
    model: EncoderDecoder,
    params: PyTree,
    batches: Iterable[tuple[TokenBatch, TokenBatch]],
    learning_rate: float | optax.Schedule,
) -> tuple[list[float], PyTree]:
    """Trains with Adam on the mean cross-entropy per target token. Returns the losses and the parameters."""
    optimizer = optax.adam(learning_rate)
    flat, unravel = ravel_pytree(params)  # one vector, since few operations compile fast

    @jax.jit
    def update(flat, opt_state, source, target):
        def loss_fn(flat):
            return mean_nll(model.apply({"params": unravel(flat)}, source, target), target)

        loss, gradient = jax.value_and_grad(loss_fn)(flat)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(flat, updates), opt_state, loss

    losses, opt_state = [], optimizer.init(flat)
    for source, target in batches:
        flat, opt_state, loss = update(flat, opt_state, source, target)
        losses.append(float(loss))
    return losses, unravel(flat)


@functools.partial(jax.jit, static_argnames=("model", "cache_length"))
def cached_logits(model, params, source_tokens, tokens, parents, cache_length):
    """The logits [t, b, n, v] of all decoding steps, given the tokens and parents [t, b, n] of the steps."""
    apply = functools.partial(model.apply, {"params": params})
    encoder_cache, state = apply(source_tokens, tokens.shape[2], cache_length, method="start_decoding")

    def step(state, inputs):
        logits, state = apply(encoder_cache, state, *inputs, method="decode_step")
        return state, logits

    return jax.lax.scan(step, state, (tokens, parents, jnp.arange(len(tokens))))[1]


@functools.partial(jax.jit, static_argnames=("model", "length"))
def greedy_search(model, params, source_tokens, length):
    """The most probable token at each of `length` steps: [b, t]."""
    apply = functools.partial(model.apply, {"params": params})
    encoder_cache, state = apply(source_tokens, 1, length, method="start_decoding")

    def step(carry, index):
        state, tokens = carry
        logits, state = apply(
            encoder_cache, state, tokens, jnp.zeros_like(tokens), index, method="decode_step"
        )
        tokens = logits.argmax(axis=-1).astype(tokens.dtype)
        return (state, tokens), tokens[:, 0]

    first = jnp.full((len(source_tokens), 1), BOS, jnp.int32)
    return jax.lax.scan(step, (state, first), jnp.arange(length))[1].T
