"""Search over a step function, independent of any model (paper, section 6.1).

A step function maps (tokens [b, n], parents [b, n], state, index) to (logits [b, n, v], state), where n is
the number of hypotheses a sentence has. `parents` says which hypothesis of the step before each one
continues, so that the model reorders its state in the way that costs it least.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from transformer.config import BOS, EOS, PAD
from transformer.decoding.pieces import IMPOSSIBLE, log_normalizer, top_k

Step = Callable[
    [Int[Array, "b n"], Int[Array, "b n"], PyTree, Int[Array, ""]], tuple[Float[Array, "b n v"], PyTree]
]
# The penalty of an output of so many pieces, EOS included; it must not fall with the length.
Penalty = Callable[[Int[Array, "*b"] | int], Float[Array, "*b"]]


class Rules(NamedTuple):
    """What an output may be.

    Attributes:
      limits: most pieces of each sentence's output, EOS included; 0 for padding rows.
      shortest: least pieces, EOS included.
      prefix: pieces with which each sentence's output begins, then PAD; fewer than its limit.
    """

    limits: Int[Array, "b"]
    shortest: int = 1
    prefix: Int[Array, "b p"] | None = None

    def allow(self, logits: Float[Array, "b n v"], index: Int[Array, ""]) -> Float[Array, "b n v"]:
        """The logits of piece number `index`, counted from 0, those that it may not be `IMPOSSIBLE`."""
        pieces = jnp.arange(logits.shape[-1])
        allowed = (pieces != PAD) & (pieces != BOS) & ((pieces != EOS) | (index + 1 >= self.shortest))
        allowed = allowed[None, None]
        if self.prefix is not None:
            forced = jnp.take(self.prefix, index, axis=1, mode="fill", fill_value=PAD)[:, None, None]
            allowed = jnp.where(forced == PAD, allowed, pieces == forced)
        return jnp.where(allowed, logits, IMPOSSIBLE)


class Found(NamedTuple):
    """Hypotheses of each sentence: the best ones, best first, or samples as they were drawn.

    Attributes:
      tokens: their pieces, EOS included, then PAD.
      score: log-probability in nats over the length penalty; `IMPOSSIBLE` where there is none.
      ended: whether they end in EOS; those that reached their limit without it come after all that do.
    """

    tokens: Int[Array, "b n t"]
    score: Float[Array, "b n"]
    ended: Bool[Array, "b n"]


def wu_penalty(length: Int[Array, "*b"] | int, alpha: float) -> Float[Array, "*b"]:
    """((5 + length) / 6)^alpha, equation 14 of Wu et al. 2016: the paper's."""
    return ((5 + jnp.asarray(length, jnp.float32)) / 6) ** alpha


def length_penalty(length: Int[Array, "*b"] | int, alpha: float) -> Float[Array, "*b"]:
    """length^alpha; with alpha 1 a score is the mean log-probability of a piece."""
    return jnp.maximum(jnp.asarray(length, jnp.float32), 1) ** alpha


PENALTIES: dict[str, Callable[[Int[Array, "*b"] | int, float], Float[Array, "*b"]]] = {
    "wu": wu_penalty,
    "length": length_penalty,
}
NO_PENALTY: Penalty = functools.partial(wu_penalty, alpha=0.0)

# (state, length) -> the model's state with room for so many pieces a hypothesis.
Grow = Callable[[PyTree, int], PyTree]


def stages(length: int) -> list[int]:
    """The rooms a search goes through, in pieces: 16, 32, ..., `length`; below 24 `length` alone.

    Attention reads all the room there is. Most outputs end long before their limit, so it grows on the way.
    """
    rooms = [16 << doubled for doubled in range(length.bit_length())]
    return [*(room for room in rooms if 3 * room <= 2 * length), length]


def keep(state: PyTree, length: int) -> PyTree:
    """The state of a model that needs no room."""
    del length
    return state


def _loop(start, goes_on, extend, length: int, grow: Grow):
    """Extends while something goes on and there is room; a carry has an `index` and the model's `state`."""
    carry = start
    for room in stages(length):
        carry = carry._replace(state=grow(carry.state, room))
        carry = jax.lax.while_loop(lambda one, room=room: (one.index < room) & goes_on(one), extend, carry)
    return carry


class _Beam(NamedTuple):
    """The search between two steps.

    Attributes:
      index: pieces chosen so far.
      live: hypotheses that go on, BOS first, best first.
      log_prob: their log-probabilities.
      found: hypotheses that ended or reached their limit, BOS first, as in `Found`.
      settled: sentences whose best hypotheses are certain.
      parent: which hypothesis of the step before each live one continues.
      state: the model's.
    """

    index: Int[Array, ""]
    live: Int[Array, "b n t"]
    log_prob: Float[Array, "b n"]
    found: Found
    settled: Bool[Array, "b"]
    parent: Int[Array, "b n"]
    state: PyTree


def beam_search(
    step: Step,
    state: PyTree,
    rules: Rules,
    length: int,
    beam_size: int,
    penalty: Penalty = NO_PENALTY,
    n_best: int = 1,
    grow: Grow = keep,
) -> Found:
    """Keeps the `beam_size` best hypotheses of each sentence at every step.

    A hypothesis that ends keeps its place in the beam, so fewer go on; with a beam of one this is greedy
    search, and with a beam that holds every output it is exhaustive.

    A sentence is settled when no live hypothesis can still be one of its `n_best`: log-probabilities only
    fall and the penalty only grows, so log_prob / penalty(limit) bounds what a live one can reach. A settled
    sentence no longer changes, whatever its neighbours do.

    Args:
      step: reads the live hypotheses' last pieces and predicts the next ones.
      state: the model's state for `beam_size` hypotheses a sentence.
      rules: what an output may be.
      length: static bound on the outputs' pieces; no limit is above it.
      beam_size: hypotheses kept.
      penalty: of the length.
      n_best: hypotheses returned, at most `beam_size`.
      grow: makes room in a state that has room for `stages(length)[0]` pieces at first.
    """
    rows = rules.limits.shape[0]

    def extend(beam: _Beam) -> _Beam:
        index = beam.index
        previous = jax.lax.dynamic_index_in_dim(beam.live, index, axis=2, keepdims=False)
        logits, state = step(previous, beam.parent, beam.state, index)
        # The best of each hypothesis are among the best of all.
        best, token = top_k(rules.allow(logits, index), min(beam_size, logits.shape[-1]))
        totals = beam.log_prob[..., None] + best - log_normalizer(logits)[..., None]
        log_prob, flat = jax.lax.top_k(totals.reshape(rows, -1), beam_size)
        parent, token = flat // best.shape[-1], jnp.take_along_axis(token.reshape(rows, -1), flat, axis=1)
        candidates = _pick(beam.live, parent)
        candidates = jax.lax.dynamic_update_slice_in_dim(candidates, token[..., None], index + 1, axis=2)
        places = jnp.sum(beam.found.score == IMPOSSIBLE, axis=1, keepdims=True)  # not taken by ended ones
        kept = (jnp.arange(beam_size) < places) & (log_prob > IMPOSSIBLE / 2)
        is_end, at_limit = token == EOS, (index + 1 >= rules.limits)[:, None]

        stays = kept & (is_end | at_limit) & ~beam.settled[:, None]
        score = jnp.where(stays, log_prob / penalty(index + 1), IMPOSSIBLE)
        found = _best(beam.found, Found(candidates, score, stays & is_end))

        log_prob, best = jax.lax.top_k(jnp.where(kept & ~is_end, log_prob, IMPOSSIBLE), beam_size)
        bound = log_prob[:, 0] / penalty(rules.limits)
        return _Beam(
            index=index + 1,
            live=_pick(candidates, best),
            log_prob=log_prob,
            found=found,
            settled=beam.settled | at_limit[:, 0] | (found.score[:, n_best - 1] >= bound),
            parent=jnp.take_along_axis(parent, best, axis=1),
            state=state,
        )

    hypotheses = jnp.full((rows, beam_size, length + 1), PAD, jnp.int32)
    start = _Beam(
        index=jnp.int32(0),
        live=hypotheses.at[:, :, 0].set(BOS),
        log_prob=jnp.full((rows, beam_size), IMPOSSIBLE).at[:, 0].set(0),  # they all start alike: keep one
        found=Found(hypotheses, jnp.full((rows, beam_size), IMPOSSIBLE), jnp.zeros((rows, beam_size), bool)),
        settled=rules.limits <= 0,
        parent=jnp.zeros((rows, beam_size), jnp.int32),
        state=state,
    )
    beam = _loop(start, lambda beam: ~beam.settled.all(), extend, length, grow)
    found = jax.tree.map(lambda x: x[:, :n_best], beam.found)
    return found._replace(tokens=found.tokens[..., 1:])


def _best(one: Found, other: Found) -> Found:
    """The best of both, as many as each has."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), one, other)
    order = jnp.lexsort((-both.score, ~both.ended))[:, : one.score.shape[1]]
    return jax.tree.map(lambda x: _pick(x, order), both)


# (logits [b, n, v], index) -> a piece each: how a search without a beam goes on.
Choose = Callable[[Float[Array, "b n v"], Int[Array, ""]], Int[Array, "b n"]]


def greedy(logits: Float[Array, "b n v"], index: Int[Array, ""]) -> Int[Array, "b n"]:
    """The most probable piece."""
    del index
    return top_k(logits, 1)[1][..., 0]


class _Choices(NamedTuple):
    """The search between two steps; see `_Beam`."""

    index: Int[Array, ""]
    tokens: Int[Array, "b n t"]
    ended: Bool[Array, "b n"]
    log_prob: Float[Array, "b n"]
    state: PyTree


def choosing_search(
    step: Step,
    state: PyTree,
    rules: Rules,
    length: int,
    hypotheses: int = 1,
    penalty: Penalty = NO_PENALTY,
    choose: Choose = greedy,
    grow: Grow = keep,
) -> Found:
    """Goes on with one piece each time: greedy search, or sampling (sampling.py).

    Args:
      hypotheses: outputs of a sentence, each chosen by itself.
      choose: the next piece, given what `rules` allow.
      step, state, rules, length, penalty, grow: as for `beam_search`.
    """
    rows = rules.limits.shape[0]
    own = jnp.broadcast_to(jnp.arange(hypotheses), (rows, hypotheses))
    limits = rules.limits[:, None]

    def extend(one: _Choices) -> _Choices:
        index, tokens, ended, log_prob, state = one
        previous = jax.lax.dynamic_index_in_dim(tokens, index, axis=2, keepdims=False)
        logits, state = step(previous, own, state, index)
        piece = choose(rules.allow(logits, index), index)
        chosen = jnp.take_along_axis(logits, piece[..., None], axis=-1)[..., 0] - log_normalizer(logits)
        active = ~ended & (index < limits)
        piece = jnp.where(active, piece, PAD).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, piece[..., None], index + 1, axis=2)
        log_prob += jnp.where(active, chosen, 0)
        return _Choices(index + 1, tokens, ended | (piece == EOS), log_prob, state)

    shape = (rows, hypotheses)
    tokens = jnp.full((*shape, length + 1), PAD, jnp.int32).at[..., 0].set(BOS)
    start = _Choices(jnp.int32(0), tokens, jnp.zeros(shape, bool), jnp.zeros(shape), state)
    end = _loop(start, lambda one: ~jnp.all(one.ended | (one.index >= limits)), extend, length, grow)
    tokens = end.tokens[..., 1:]
    score = end.log_prob / penalty((tokens != PAD).sum(axis=-1))
    return Found(tokens, jnp.where(limits > 0, score, IMPOSSIBLE), end.ended)


def _pick(x: Array, index: Int[Array, "b n"]) -> Array:
    """Selects hypotheses (axis 1) of each sentence (axis 0)."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
