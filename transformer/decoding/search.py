"""Search over a step function, independent of any model (paper, section 6.1).

A step function maps (tokens [b, n], parents [b, n], state, index) to (logits [b, n, v], state), where n is
the number of hypotheses a sentence has. `parents` says which hypothesis of the step before each one
continues, so that the model reorders its state in the way that costs it least.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from transformer.config import BOS, EOS, PAD

Step = Callable[
    [Int[Array, "b n"], Int[Array, "b n"], PyTree, Int[Array, ""]], tuple[Float[Array, "b n v"], PyTree]
]

# Below any score, and finite, so that the order among such hypotheses is kept.
IMPOSSIBLE = -1e9
# Added to the score of a hypothesis that reached its limit without EOS: it counts only where none ended.
UNENDED = -1e6


class Found(NamedTuple):
    """The best hypothesis of each sentence.

    Attributes:
      tokens: its pieces, EOS included, then PAD.
      score: its log-probability in nats over the length penalty; `UNENDED` lower where it never ended.
    """

    tokens: Int[Array, "b t"]
    score: Float[Array, "b"]


def length_penalty(length: Int[Array, "*b"] | int, alpha: float) -> Float[Array, "*b"]:
    """((5 + length) / 6)^alpha, equation 14 of Wu et al. 2016; EOS counts."""
    return ((5 + jnp.asarray(length, jnp.float32)) / 6) ** alpha


def greedy_search(
    step: Step, state: PyTree, limits: Int[Array, "b"], length: int, alpha: float = 0.0
) -> Found:
    """Takes the most probable piece each time. Arguments and result as for `beam_search`."""
    rows = limits.shape[0]

    def unfinished(carry):
        index, _, ended, *_ = carry
        return (index < length) & ~jnp.all(ended | (index >= limits))

    def extend(carry):
        index, tokens, ended, log_prob, state = carry
        previous = jax.lax.dynamic_slice_in_dim(tokens, index, 1, axis=1)
        logits, state = step(previous, jnp.zeros_like(previous), state, index)
        log_probs = _log_probs(logits)[:, 0]
        best = log_probs.argmax(axis=-1)
        active = ~ended & (index < limits)
        log_prob += jnp.where(active, log_probs.max(axis=-1), 0)
        chosen = jnp.where(active, best, PAD).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], index + 1, axis=1)
        return index + 1, tokens, ended | (chosen == EOS), log_prob, state

    tokens = jnp.full((rows, length + 1), PAD, jnp.int32).at[:, 0].set(BOS)
    start = (jnp.int32(0), tokens, jnp.zeros(rows, bool), jnp.zeros(rows), state)
    _, tokens, ended, log_prob, _ = jax.lax.while_loop(unfinished, extend, start)
    tokens = tokens[:, 1:]
    score = log_prob / length_penalty((tokens != PAD).sum(axis=1), alpha)
    return Found(tokens, jnp.where(ended, score, score + UNENDED))


class _Beam(NamedTuple):
    """The search between two steps.

    Attributes:
      index: pieces chosen so far.
      live: hypotheses that go on, BOS first, best first.
      log_prob: their log-probabilities.
      ended: hypotheses that ended, best first.
      score: their scores; `IMPOSSIBLE` where there is none yet.
      settled: sentences whose best hypothesis is certain.
      parent: which hypothesis of the step before each live one continues.
      state: the model's.
    """

    index: Int[Array, ""]
    live: Int[Array, "b n t"]
    log_prob: Float[Array, "b n"]
    ended: Int[Array, "b n t"]
    score: Float[Array, "b n"]
    settled: Bool[Array, "b"]
    parent: Int[Array, "b n"]
    state: PyTree


def beam_search(
    step: Step, state: PyTree, limits: Int[Array, "b"], length: int, beam_size: int, alpha: float
) -> Found:
    """Keeps the `beam_size` best hypotheses of each sentence at every step.

    A hypothesis that ends keeps its place in the beam, so fewer go on; with a beam of one this is greedy
    search, and with a beam that holds every output it is exhaustive.

    A sentence is settled when no live hypothesis can still beat its best ended one: log-probabilities only
    fall and the penalty only grows, so log_prob / penalty(limit) bounds what a live one can reach. A settled
    sentence no longer changes, whatever its neighbours do.

    Args:
      step: reads the live hypotheses' last pieces and predicts the next ones.
      state: the model's state for `beam_size` hypotheses a sentence.
      limits: most pieces of each sentence's output, EOS included, at most `length`; 0 for padding rows.
      length: static bound on the output.
      beam_size: hypotheses kept.
      alpha: exponent of the length penalty; 0 for none.
    """
    rows = limits.shape[0]

    def extend(beam: _Beam) -> _Beam:
        index = beam.index
        previous = jax.lax.dynamic_index_in_dim(beam.live, index, axis=2, keepdims=False)
        logits, state = step(previous, beam.parent, beam.state, index)
        totals = beam.log_prob[..., None] + _log_probs(logits)
        log_prob, flat = jax.lax.top_k(totals.reshape(rows, -1), beam_size)
        parent, token = jnp.divmod(flat, logits.shape[-1])
        candidates = _pick(beam.live, parent)
        candidates = jax.lax.dynamic_update_slice_in_dim(
            candidates, token[..., None].astype(jnp.int32), index + 1, axis=2
        )
        places = jnp.sum(beam.score == IMPOSSIBLE, axis=1, keepdims=True)  # not taken by ended ones
        kept = (jnp.arange(beam_size) < places) & (log_prob > IMPOSSIBLE / 2)
        is_end, at_limit = token == EOS, (index + 1 >= limits)[:, None]

        score = log_prob / length_penalty(index + 1, alpha)
        score = jnp.where(is_end, score, score + UNENDED)
        ends = kept & (is_end | at_limit) & ~beam.settled[:, None]
        pool = jnp.concatenate([beam.score, jnp.where(ends, score, IMPOSSIBLE)], axis=1)
        score, best = jax.lax.top_k(pool, beam_size)
        ended = _pick(jnp.concatenate([beam.ended, candidates], axis=1), best)

        log_prob, best = jax.lax.top_k(jnp.where(kept & ~is_end, log_prob, IMPOSSIBLE), beam_size)
        bound = log_prob[:, 0] / length_penalty(limits, alpha)
        return _Beam(
            index=index + 1,
            live=_pick(candidates, best),
            log_prob=log_prob,
            ended=ended,
            score=score,
            settled=beam.settled | at_limit[:, 0] | (score[:, 0] >= bound),
            parent=jnp.take_along_axis(parent, best, axis=1),
            state=state,
        )

    hypotheses = jnp.full((rows, beam_size, length + 1), PAD, jnp.int32)
    start = _Beam(
        index=jnp.int32(0),
        live=hypotheses.at[:, :, 0].set(BOS),
        log_prob=jnp.full((rows, beam_size), IMPOSSIBLE).at[:, 0].set(0),  # they all start alike: keep one
        ended=hypotheses,
        score=jnp.full((rows, beam_size), IMPOSSIBLE),
        settled=limits <= 0,
        parent=jnp.zeros((rows, beam_size), jnp.int32),
        state=state,
    )
    beam = jax.lax.while_loop(lambda beam: (beam.index < length) & ~beam.settled.all(), extend, start)
    return Found(beam.ended[:, 0, 1:], beam.score[:, 0])


def _log_probs(logits: Float[Array, "b n v"]) -> Float[Array, "b n v"]:
    """Log-probabilities of the next piece; PAD and BOS are none."""
    pieces = jnp.arange(logits.shape[-1])
    return jnp.where((pieces == PAD) | (pieces == BOS), IMPOSSIBLE, jax.nn.log_softmax(logits))


def _pick(x: Array, index: Int[Array, "b n"]) -> Array:
    """Selects hypotheses (axis 1) of each sentence (axis 0)."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
