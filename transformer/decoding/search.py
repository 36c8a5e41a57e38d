"""Search over a step function, independent of any model (paper, section 6.1).

A step function maps (tokens [b, n], parents [b, n], state, index) to (logits [b, n, v], state), where n is
the number of hypotheses a sentence has. `parents` says which hypothesis of the step before each one
continues, so that the model reorders its state in the way that costs it least.
"""

import dataclasses
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


class _Beam(NamedTuple):
    """A beam search between two steps.

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


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Keeps the `beam_size` best hypotheses of each sentence at every step.

    A hypothesis that ends keeps its place in the beam, so fewer go on; with a beam of one this is greedy
    search, and with a beam that holds every output it is exhaustive.

    A sentence is settled when no live hypothesis can still be one of its `n_best`: log-probabilities only
    fall and the penalty only grows, so log_prob / penalty(limit) bounds what a live one can reach. A settled
    sentence no longer changes, whatever its neighbours do.

    Attributes:
      beam_size: hypotheses kept.
      penalty: of the length.
      n_best: hypotheses found, at most `beam_size`.
    """

    beam_size: int
    penalty: Penalty = NO_PENALTY
    n_best: int = 1

    def begin(self, state: PyTree, rules: Rules, length: int) -> _Beam:
        """Before the first step; see `run`."""
        rows = rules.limits.shape[0]
        hypotheses = jnp.full((rows, self.beam_size, length + 1), PAD, jnp.int32)
        none = jnp.full((rows, self.beam_size), IMPOSSIBLE)
        return _Beam(
            index=jnp.int32(0),
            live=hypotheses.at[:, :, 0].set(BOS),
            log_prob=none.at[:, 0].set(0),  # they all start alike: keep one
            found=Found(hypotheses, none, jnp.zeros(none.shape, bool)),
            settled=rules.limits <= 0,
            parent=jnp.zeros(none.shape, jnp.int32),
            state=state,
        )

    def extend(self, step: Step, rules: Rules, beam: _Beam) -> _Beam:
        """One more piece for each live hypothesis."""
        index, (rows, size) = beam.index, beam.log_prob.shape
        previous = jax.lax.dynamic_index_in_dim(beam.live, index, axis=2, keepdims=False)
        logits, state = step(previous, beam.parent, beam.state, index)
        # The best of each hypothesis are among the best of all.
        best, token = top_k(rules.allow(logits, index), min(size, logits.shape[-1]))
        totals = beam.log_prob[..., None] + best - log_normalizer(logits)[..., None]
        log_prob, flat = jax.lax.top_k(totals.reshape(rows, -1), size)
        parent, token = flat // best.shape[-1], jnp.take_along_axis(token.reshape(rows, -1), flat, axis=1)
        candidates = _pick(beam.live, parent)
        candidates = jax.lax.dynamic_update_slice_in_dim(candidates, token[..., None], index + 1, axis=2)
        places = jnp.sum(beam.found.score == IMPOSSIBLE, axis=1, keepdims=True)  # not taken by ended ones
        kept = (jnp.arange(size) < places) & (log_prob > IMPOSSIBLE / 2)
        is_end, at_limit = token == EOS, (index + 1 >= rules.limits)[:, None]

        stays = kept & (is_end | at_limit) & ~beam.settled[:, None]
        score = jnp.where(stays, log_prob / self.penalty(index + 1), IMPOSSIBLE)
        found = _best(beam.found, Found(candidates, score, stays & is_end))

        log_prob, best = jax.lax.top_k(jnp.where(kept & ~is_end, log_prob, IMPOSSIBLE), size)
        bound = log_prob[:, 0] / self.penalty(rules.limits)
        return _Beam(
            index=index + 1,
            live=_pick(candidates, best),
            log_prob=log_prob,
            found=found,
            settled=beam.settled | at_limit[:, 0] | (found.score[:, self.n_best - 1] >= bound),
            parent=jnp.take_along_axis(parent, best, axis=1),
            state=state,
        )

    def settled(self, rules: Rules, beam: _Beam) -> Bool[Array, "b"]:
        """Which sentences no longer change."""
        del rules
        return beam.settled

    def end(self, rules: Rules, beam: _Beam) -> Found:
        """What was found so far; of settled sentences, what they have."""
        del rules
        found = jax.tree.map(lambda x: x[:, : self.n_best], beam.found)
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
    """A search without a beam between two steps; see `_Beam`."""

    index: Int[Array, ""]
    tokens: Int[Array, "b n t"]
    ended: Bool[Array, "b n"]
    log_prob: Float[Array, "b n"]
    state: PyTree


@dataclasses.dataclass(frozen=True)
class ChoosingSearch:
    """Goes on with one piece each time: greedy search, or sampling (sampling.py).

    Attributes:
      hypotheses: outputs of a sentence, each chosen by itself.
      penalty: of the length, in the score.
      choose: the next piece, given what the rules allow.
    """

    hypotheses: int = 1
    penalty: Penalty = NO_PENALTY
    choose: Choose = greedy

    def begin(self, state: PyTree, rules: Rules, length: int) -> _Choices:
        """Before the first step; see `run`."""
        shape = (*rules.limits.shape, self.hypotheses)
        tokens = jnp.full((*shape, length + 1), PAD, jnp.int32).at[..., 0].set(BOS)
        return _Choices(jnp.int32(0), tokens, jnp.zeros(shape, bool), jnp.zeros(shape), state)

    def extend(self, step: Step, rules: Rules, one: _Choices) -> _Choices:
        """One more piece for each output that has no end."""
        index, tokens, ended, log_prob, state = one
        previous = jax.lax.dynamic_index_in_dim(tokens, index, axis=2, keepdims=False)
        own = jnp.broadcast_to(jnp.arange(self.hypotheses), ended.shape)
        logits, state = step(previous, own, state, index)
        piece = self.choose(rules.allow(logits, index), index)
        chosen = jnp.take_along_axis(logits, piece[..., None], axis=-1)[..., 0] - log_normalizer(logits)
        active = ~ended & (index < rules.limits[:, None])
        piece = jnp.where(active, piece, PAD).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, piece[..., None], index + 1, axis=2)
        log_prob += jnp.where(active, chosen, 0)
        return _Choices(index + 1, tokens, ended | (piece == EOS), log_prob, state)

    def settled(self, rules: Rules, one: _Choices) -> Bool[Array, "b"]:
        """Which sentences no longer change."""
        return one.ended.all(axis=1) | (one.index >= rules.limits)

    def end(self, rules: Rules, one: _Choices) -> Found:
        """What was chosen so far; of settled sentences, all that is."""
        tokens = one.tokens[..., 1:]
        score = one.log_prob / self.penalty((tokens != PAD).sum(axis=-1))
        return Found(tokens, jnp.where(rules.limits[:, None] > 0, score, IMPOSSIBLE), one.ended)


Search = BeamSearch | ChoosingSearch


def go_on(search: Search, step: Step, rules: Rules, carry: PyTree, room: int, fewest: int = 0) -> PyTree:
    """Extends up to `room` pieces, as long as more than `fewest` sentences are not settled."""

    def goes_on(carry):
        return (carry.index < room) & (jnp.sum(~search.settled(rules, carry)) > fewest)

    return jax.lax.while_loop(goes_on, functools.partial(search.extend, step, rules), carry)


def run(search: Search, step: Step, state: PyTree, rules: Rules, length: int, grow: Grow = keep) -> Found:
    """Searches until every sentence is settled.

    Args:
      search: how.
      step: reads the hypotheses' last pieces and predicts the next ones.
      state: the model's state for the hypotheses of each sentence.
      rules: what an output may be.
      length: static bound on the outputs' pieces; no limit is above it.
      grow: makes room in a state that has room for `stages(length)[0]` pieces at first.
    """
    carry = search.begin(state, rules, length)
    for room in stages(length):
        carry = carry._replace(state=grow(carry.state, room))
        carry = go_on(search, step, rules, carry, room)
    return search.end(rules, carry)


def _pick(x: Array, index: Int[Array, "b n"]) -> Array:
    """Selects hypotheses (axis 1) of each sentence (axis 0)."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
