"""A search one step at a time, to show how it finds an output."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree
from numpy.typing import ArrayLike

from transformer.config import BOS, PAD, DecodeConfig
from transformer.data.batching import bucket, pad_rows
from transformer.decoding.model_search import ModelSearch, SearchRows
from transformer.decoding.search import BeamState
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.masks import NEG_INF

Scores = dict[tuple[int, ...], float]  # by the tokens of a hypothesis


class BeamStep(NamedTuple):
    """The hypotheses after a step of a search. Keys are the tokens of a hypothesis; the best come first.

    Attributes:
      live: log-probability, in nats, of each hypothesis that the next step extends.
      completed: score of each finished output so far: its log-probability divided by the length penalty.
      candidates: log-probability of the most probable extensions of the hypotheses that were live before the
        step. The search kept some of them.
    """

    live: Scores
    completed: Scores
    candidates: Scores


def beam_steps(
    model: EncoderDecoder,
    params: PyTree,
    source: Sequence[int],
    config: DecodeConfig,
    limit: int,
    num_candidates: int = 0,
) -> list[BeamStep]:
    """Searches for the output of one sentence, and returns the hypotheses after each step.

    The search is that of `Translator`. The best output is the first key of `completed` of the last step.

    Args:
      model: the model.
      params: the parameters of the model.
      source: tokens, closed by EOS.
      config: settings of the search.
      limit: largest number of tokens of the output, EOS included; see `Translator.output_limits`.
      num_candidates: number of candidates of each step.
    """
    search = ModelSearch(model, config)
    source_length = bucket(len(source), model.max_lengths.source)
    length = bucket(limit, model.max_lengths.target)
    rows = _start(search, params, pad_rows([source], source_length), np.array([limit]), length)
    steps = []
    while not rows.state.finished[0]:
        before = rows.state
        rows, log_probs = _extend(search, params, rows)
        totals = np.asarray(before.log_prob)[0, :, None] + np.asarray(log_probs)[0]
        best = np.argsort(-totals, axis=None, kind="stable")[:num_candidates]
        parents, tokens = np.unravel_index(best, totals.shape)
        extended = np.append(np.asarray(before.tokens)[0, parents], tokens[:, None], axis=1)
        steps.append(BeamStep(*_hypotheses(search, rows), _by_tokens(extended, totals[parents, tokens])))
    return steps


_extend = jax.jit(ModelSearch.extend, static_argnames="self")


@functools.partial(jax.jit, static_argnames=("search", "length"))
def _start(
    search: ModelSearch, params: PyTree, source: Int[Array, "1 s"], limits: Int[Array, "1"], length: int
) -> SearchRows:
    return search.resize_cache(search.start(params, source, limits, length), length)


def _hypotheses(search: ModelSearch, rows: SearchRows) -> tuple[Scores, Scores]:
    """Returns the live and the completed hypotheses of the only sentence of a search."""
    state, result = rows.state, search.result(rows)
    live = _by_tokens(state.tokens[0], state.log_prob[0])
    if isinstance(state, BeamState):
        return live, _by_tokens(state.completed.tokens[0], state.completed.score[0])
    return ({}, _by_tokens(result.tokens[0], result.score[0])) if state.finished[0] else (live, {})


def _by_tokens(tokens: ArrayLike, scores: ArrayLike) -> Scores:
    """Returns the score of each hypothesis that exists, by its tokens."""
    rows = zip(np.asarray(tokens).tolist(), np.asarray(scores).tolist(), strict=True)
    return {
        tuple(token for token in row if token not in (BOS, PAD)): score
        for row, score in rows
        if score > NEG_INF / 2
    }
