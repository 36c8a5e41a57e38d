"""Beam search and greedy search over a step function (paper, section 6.1), independent of any model.

The step function maps (tokens [b n], parents [b n], state, index) to (logits [b n v], state) for n hypotheses
per sentence. `tokens` are the decoder's input at position `index`; the input at position 0 is BOS. `parents`
gives, for each hypothesis, the index of the previous step's hypothesis that it extends. The step function
selects the entries of the parents in its state.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from transformer.config import BOS, EOS, PAD
from transformer.decoding.length_penalty import NO_PENALTY, LengthPenalty
from transformer.decoding.top_k import log_normalizer, top_k
from transformer.model.masks import NEG_INF

Step = Callable[
    [Int[Array, "b n"], Int[Array, "b n"], PyTree, Int[Array, ""]], tuple[Float[Array, "b n v"], PyTree]
]
# (logits [b n v], index) -> the next token of each hypothesis.
ChooseToken = Callable[[Float[Array, "b n v"], Int[Array, ""]], Int[Array, "b n"]]


class Constraints(NamedTuple):
    """Conditions that outputs satisfy.

    Attributes:
      limits: largest number of tokens of each sentence's output, EOS included; 0 for padding rows.
      min_length: smallest number of tokens, EOS included.
      prefix: first tokens of each sentence's output, padded with PAD; fewer tokens than the limit.
    """

    limits: Int[Array, "b"]
    min_length: Int[Array, ""] | int = 1
    prefix: Int[Array, "b p"] | None = None

    def apply(self, logits: Float[Array, "b n v"], index: Int[Array, ""]) -> Float[Array, "b n v"]:
        """Replaces the logits of tokens that are not allowed at position `index` by NEG_INF."""
        tokens = jnp.arange(logits.shape[-1])[None, None]
        allowed = (tokens != PAD) & (tokens != BOS) & ((tokens != EOS) | (index + 1 >= self.min_length))
        if self.prefix is not None:
            forced = jnp.take(self.prefix, index, axis=1, mode="fill", fill_value=PAD)[:, None, None]
            allowed = jnp.where(forced == PAD, allowed, tokens == forced)
        return jnp.where(allowed, logits, NEG_INF)


class SearchResult(NamedTuple):
    """Outputs of each sentence: the best ones, best first, or samples in the order of sampling.

    Attributes:
      tokens: tokens of each output, EOS included, padded with PAD.
      score: log-probability in nats divided by the length penalty; NEG_INF in a place without an output.
      ended: whether the output ends in EOS. Outputs without EOS, which reached their limit, rank last.
    """

    tokens: Int[Array, "b n t"]
    score: Float[Array, "b n"]
    ended: Bool[Array, "b n"]


def cache_sizes(length: int) -> list[int]:
    """Returns the cache sizes of a search in tokens: 16, 32, ..., `length`; only `length` if it is below 24.

    Attention reads the whole cache, and most outputs end long before their limit. So a search starts with a
    small cache, which grows.
    """
    doubled = [16 << exponent for exponent in range(length.bit_length())]
    return [*(size for size in doubled if 3 * size <= 2 * length), length]


class BeamState(NamedTuple):
    """State of a beam search between two steps.

    Attributes:
      index: number of tokens chosen so far.
      tokens: tokens of the live hypotheses, best hypothesis first. The first token is BOS.
      log_prob: log-probabilities of the live hypotheses, in nats.
      completed: hypotheses that ended or reached the limit. The first token is BOS.
      finished: whether the outputs of a sentence cannot change any more.
      parents: for each live hypothesis, the index of the previous step's hypothesis that it extends.
      model_state: state of the model.
    """

    index: Int[Array, ""]
    tokens: Int[Array, "b n t"]
    log_prob: Float[Array, "b n"]
    completed: SearchResult
    finished: Bool[Array, "b"]
    parents: Int[Array, "b n"]
    model_state: PyTree


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Beam search: keeps the `beam_size` best hypotheses of each sentence at every step.

    A hypothesis that ends keeps its place in the beam, so fewer hypotheses are extended. A beam of 1 is
    greedy search; a beam with space for every output is exhaustive search.

    A sentence is finished when no live hypothesis can become one of its `n_best` outputs. A longer hypothesis
    never has a larger log-probability or a smaller penalty. So log_prob / penalty(limit) is an upper bound on
    the final score.

    Attributes:
      beam_size: number of hypotheses.
      penalty: length penalty.
      n_best: number of outputs per sentence, at most `beam_size`.
    """

    beam_size: int
    penalty: LengthPenalty = NO_PENALTY
    n_best: int = 1

    def init(self, model_state: PyTree, constraints: Constraints, length: int) -> BeamState:
        """Returns the state before the first step, for outputs of at most `length` tokens."""
        no_score = jnp.full((*constraints.limits.shape, self.beam_size), NEG_INF)
        tokens = jnp.full((*no_score.shape, length + 1), PAD, jnp.int32)
        return BeamState(
            index=jnp.int32(0),
            tokens=tokens.at[:, :, 0].set(BOS),
            log_prob=no_score.at[:, 0].set(0),  # all hypotheses are equal at first, so only one is live
            completed=SearchResult(tokens, no_score, jnp.zeros(no_score.shape, bool)),
            finished=constraints.limits <= 0,
            parents=jnp.zeros(no_score.shape, jnp.int32),
            model_state=model_state,
        )

    def extend(self, step: Step, constraints: Constraints, beam: BeamState) -> BeamState:
        """Extends each live hypothesis by one token."""
        index, size = beam.index, self.beam_size
        previous = jax.lax.dynamic_index_in_dim(beam.tokens, index, axis=2, keepdims=False)
        logits, model_state = step(previous, beam.parents, beam.model_state, index)
        log_prob, parents, token = _best_extensions(beam.log_prob, logits, constraints.apply(logits, index))
        tokens = _select(beam.tokens, parents)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], index + 1, axis=2)

        num_free = jnp.sum(beam.completed.score == NEG_INF, axis=1, keepdims=True)
        in_beam = (jnp.arange(size)[None] < num_free) & (log_prob > NEG_INF / 2)
        is_end, at_limit = token == EOS, (index + 1 >= constraints.limits)[:, None]
        complete = in_beam & (is_end | at_limit) & ~beam.finished[:, None]
        score = jnp.where(complete, log_prob / self.penalty(index + 1), NEG_INF)
        completed = _merge(beam.completed, SearchResult(tokens, score, complete & is_end))

        log_prob, live = jax.lax.top_k(jnp.where(in_beam & ~is_end, log_prob, NEG_INF), size)
        bound = log_prob[:, 0] / self.penalty(constraints.limits)
        return BeamState(
            index=index + 1,
            tokens=_select(tokens, live),
            log_prob=log_prob,
            completed=completed,
            finished=beam.finished | at_limit[:, 0] | (completed.score[:, self.n_best - 1] >= bound),
            parents=jnp.take_along_axis(parents, live, axis=1),
            model_state=model_state,
        )

    def result(self, constraints: Constraints, beam: BeamState) -> SearchResult:
        """Returns the best outputs so far; they are final for finished sentences."""
        del constraints
        best = jax.tree.map(lambda x: x[:, : self.n_best], beam.completed)
        return best._replace(tokens=best.tokens[..., 1:])


def _best_extensions(log_prob, logits, allowed_logits):
    """Returns log-probabilities, parents and tokens of the best extensions of all hypotheses."""
    num_rows, size = log_prob.shape
    # The best extensions of a sentence are among the best extensions of each hypothesis.
    best, token = top_k(allowed_logits, min(size, logits.shape[-1]))
    totals = log_prob[..., None] + best - log_normalizer(logits)[..., None]
    log_prob, flat = jax.lax.top_k(totals.reshape(num_rows, -1), size)
    return log_prob, flat // best.shape[-1], jnp.take_along_axis(token.reshape(num_rows, -1), flat, axis=1)


def _merge(first: SearchResult, second: SearchResult) -> SearchResult:
    """Returns the best outputs of two results, as many as the first result has."""
    merged = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), first, second)
    order = jnp.lexsort((-merged.score, ~merged.ended))[:, : first.score.shape[1]]
    return jax.tree.map(lambda x: _select(x, order), merged)


def _select(x: Array, hypotheses: Int[Array, "b n"]) -> Array:
    """Selects hypotheses (axis 1) of each sentence (axis 0)."""
    index = hypotheses.reshape(*hypotheses.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


def most_probable(logits: Float[Array, "b n v"], index: Int[Array, ""]) -> Int[Array, "b n"]:
    """Returns the most probable tokens, for greedy search."""
    del index
    return top_k(logits, 1)[1][..., 0]


class IndependentState(NamedTuple):
    """State of an `IndependentSearch` between two steps; see `BeamState` for the fields."""

    index: Int[Array, ""]
    tokens: Int[Array, "b n t"]
    log_prob: Float[Array, "b n"]
    ended: Bool[Array, "b n"]
    finished: Bool[Array, "b"]
    model_state: PyTree


@dataclasses.dataclass(frozen=True)
class IndependentSearch:
    """Greedy search or sampling: each hypothesis is extended independently of other hypotheses.

    Attributes:
      num_hypotheses: number of outputs per sentence.
      penalty: length penalty of the score.
      choose_token: chooses the next token: `most_probable` or a `Sampler`.
    """

    num_hypotheses: int = 1
    penalty: LengthPenalty = NO_PENALTY
    choose_token: ChooseToken = most_probable

    def init(self, model_state: PyTree, constraints: Constraints, length: int) -> IndependentState:
        """Returns the state before the first step, for outputs of at most `length` tokens."""
        shape = (*constraints.limits.shape, self.num_hypotheses)
        tokens = jnp.full((*shape, length + 1), PAD, jnp.int32).at[..., 0].set(BOS)
        return IndependentState(
            index=jnp.int32(0),
            tokens=tokens,
            log_prob=jnp.zeros(shape),
            ended=jnp.zeros(shape, bool),
            finished=constraints.limits <= 0,
            model_state=model_state,
        )

    def extend(self, step: Step, constraints: Constraints, state: IndependentState) -> IndependentState:
        """Extends each hypothesis that has not ended by one token."""
        index = state.index
        previous = jax.lax.dynamic_index_in_dim(state.tokens, index, axis=2, keepdims=False)
        parents = jnp.broadcast_to(jnp.arange(self.num_hypotheses)[None], previous.shape)
        logits, model_state = step(previous, parents, state.model_state, index)
        token = self.choose_token(constraints.apply(logits, index), index)
        chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0] - log_normalizer(logits)
        active = ~state.ended & (index < constraints.limits[:, None])
        token = jnp.where(active, token, PAD).astype(jnp.int32)
        ended = state.ended | (token == EOS)
        return IndependentState(
            index=index + 1,
            tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[..., None], index + 1, axis=2),
            log_prob=state.log_prob + jnp.where(active, chosen, 0),
            ended=ended,
            finished=ended.all(axis=1) | (index + 1 >= constraints.limits),
            model_state=model_state,
        )

    def result(self, constraints: Constraints, state: IndependentState) -> SearchResult:
        """Returns the outputs so far; they are final for finished sentences."""
        tokens = state.tokens[..., 1:]
        score = state.log_prob / self.penalty((tokens != PAD).sum(axis=-1))
        return SearchResult(tokens, jnp.where(constraints.limits[:, None] > 0, score, NEG_INF), state.ended)


Search = BeamSearch | IndependentSearch


def advance(
    search: Search,
    step: Step,
    constraints: Constraints,
    state: PyTree,
    length: int | Int[Array, ""],
    max_unfinished: int = 0,
    axes: Sequence[str] = (),
) -> PyTree:
    """Extends outputs until they have `length` tokens or only `max_unfinished` sentences are unfinished.

    In `jax.shard_map`, `axes` are the mesh axes that split the sentences.
    """

    def unfinished(state):
        num_unfinished = jax.lax.psum(jnp.sum(~state.finished), axes)
        return (state.index < length) & (num_unfinished > max_unfinished)

    return jax.lax.while_loop(unfinished, functools.partial(search.extend, step, constraints), state)
