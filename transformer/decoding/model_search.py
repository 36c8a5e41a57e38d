"""Search with a model: in one compiled program, or in several that drop finished sentences in between."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from transformer.config import DecodeConfig, UserError, choose
from transformer.decoding.length_penalty import PENALTIES
from transformer.decoding.sampling import Sampler
from transformer.decoding.search import (
    BeamSearch,
    Constraints,
    IndependentSearch,
    Search,
    SearchResult,
    Step,
    advance,
    cache_sizes,
)
from transformer.decoding.top_k import log_normalizer
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble
from transformer.training.parallelism import pad_batch

# Sentences are dropped only if at least this many hypotheses remain. On CPU, XLA's matrix products can round
# a row of a small batch differently than the same row of a large batch, and an output must not depend on the
# other sentences of its batch.
MIN_HYPOTHESES = 64


class SearchRows(NamedTuple):
    """State of a search with a model. Every array except `state.index` has one row per sentence.

    Attributes:
      limits: see `Constraints`.
      prefix: see `Constraints`.
      sentence_ids: see `Sampler`.
      encoder_cache: shared by the hypotheses of a sentence; see `EncoderDecoder.start_decoding`.
      state: a `BeamState` or an `IndependentState`; None until `start` has made the state.
    """

    limits: Int[Array, "b"]
    prefix: Int[Array, "b p"] | None
    sentence_ids: Int[Array, "b"]
    encoder_cache: PyTree
    state: PyTree


@dataclasses.dataclass(frozen=True)
class ModelSearch:
    """Search with a model and the settings of a config. The methods are pure functions of the parameters.

    Attributes:
      model: predicts the next token.
      config: beam search, greedy search or sampling, and its settings.
      n_best: number of outputs per sentence.

    Raises:
      UserError: the penalty is unknown, `n_best` is below 1 or above the beam size, or the minimum length is
        above the number of the model's positions.
    """

    model: EncoderDecoder | Ensemble
    config: DecodeConfig
    n_best: int = 1

    def __post_init__(self):
        choose(PENALTIES, self.config.penalty, "decode.penalty")
        if self.n_best < 1:
            raise UserError(f"the number of outputs per sentence is {self.n_best}; it must be at least 1")
        if self.n_best > self.num_hypotheses:
            raise UserError(
                f"decode.beam_size is {self.num_hypotheses}; it must be at least {self.n_best}, the number "
                "of outputs per sentence"
            )
        limit, min_length = self.model.max_lengths.target, self.config.min_output_length
        if limit is not None and min_length > limit:
            raise UserError(
                f"decode.min_output_length is {min_length}; it must be at most {limit}, the largest number "
                "of tokens for which the model has positions"
            )

    @property
    def num_hypotheses(self) -> int:
        """Number of hypotheses per sentence."""
        return self.n_best if self.config.sampling else self.config.beam_size

    def __call__(
        self,
        params: PyTree,
        source: Int[Array, "b s"],
        limits: Int[Array, "b"],
        length: int,
        prefix: Int[Array, "b p"] | None = None,
        sentence_ids: Int[Array, "b"] | None = None,
    ) -> SearchResult:
        """Searches in one program. Returns the outputs of each row.

        Args:
          params: parameters of the model.
          source: tokens of the sentences, padded with PAD; padding rows have limit 0.
          limits: see `Constraints`.
          length: static upper bound on the limits.
          prefix: see `Constraints`.
          sentence_ids: see `Sampler`; if None, the row indices.
        """
        rows = self.start(params, source, limits, length, prefix, sentence_ids)
        for number, size in enumerate(cache_sizes(length)):
            rows = self.resize_cache(rows, size) if number else rows
            rows = self.advance(params, rows, size)
        return self.result(rows)

    def start(self, params, source, limits, length, prefix=None, sentence_ids=None) -> SearchRows:
        """Encodes the sentences; see `__call__` for the arguments."""
        sentence_ids = jnp.arange(len(source)) if sentence_ids is None else sentence_ids
        encoder_cache, model_state = self.model.apply(
            {"params": params}, source, self.num_hypotheses, cache_sizes(length)[0], method="start_decoding"
        )
        rows = SearchRows(limits, prefix, sentence_ids, encoder_cache, None)
        return rows._replace(state=self._search(rows).init(model_state, self._constraints(rows), length))

    def resize_cache(self, rows: SearchRows, length: int) -> SearchRows:
        """Returns the state with caches for `length` tokens per hypothesis."""
        model_state = self.model.resize_cache(rows.state.model_state, length)
        return rows._replace(state=rows.state._replace(model_state=model_state))

    def advance(
        self,
        params: PyTree,
        rows: SearchRows,
        length: int,
        max_unfinished: int = 0,
        axes: Sequence[str] = (),
    ) -> SearchRows:
        """Extends outputs; see `search.advance`."""
        step, constraints = self._step(params, rows), self._constraints(rows)
        state = advance(self._search(rows), step, constraints, rows.state, length, max_unfinished, axes)
        return rows._replace(state=state)

    def extend(self, params: PyTree, rows: SearchRows) -> tuple[SearchRows, Float[Array, "b n v"]]:
        """Extends outputs by one token; see `search.advance`.

        Also returns the log-probability of each next token, in nats; NEG_INF if a constraint forbids it.
        """
        step, constraints = self._step(params, rows), self._constraints(rows)

        def observed(tokens, parents, model_state, index):
            logits, model_state = step(tokens, parents, model_state[0], index)
            log_probs = constraints.apply(logits - log_normalizer(logits)[..., None], index)
            return logits, (model_state, log_probs)

        state = rows.state._replace(model_state=(rows.state.model_state, None))
        state = self._search(rows).extend(observed, constraints, state)
        model_state, log_probs = state.model_state
        return rows._replace(state=state._replace(model_state=model_state)), log_probs

    def result(self, rows: SearchRows) -> SearchResult:
        """Returns the outputs so far; they are final for finished sentences."""
        return self._search(rows).result(self._constraints(rows), rows.state)

    def _step(self, params: PyTree, rows: SearchRows) -> Step:
        def step(tokens, parents, model_state, index):
            arguments = (rows.encoder_cache, model_state, tokens, parents, index)
            return self.model.apply({"params": params}, *arguments, method="decode_step")

        return step

    def _constraints(self, rows: SearchRows) -> Constraints:
        return Constraints(rows.limits, self.config.min_output_length, rows.prefix)

    def _search(self, rows: SearchRows) -> Search:
        config = self.config
        penalty = functools.partial(PENALTIES[config.penalty], alpha=config.length_penalty)
        if config.sampling:
            key = jax.random.key(config.seed)
            sampler = Sampler(key, rows.sentence_ids, config.temperature, config.top_k, config.top_p)
            return IndependentSearch(self.num_hypotheses, penalty, sampler)
        if self.num_hypotheses == 1:
            return IndependentSearch(penalty=penalty)
        return BeamSearch(self.num_hypotheses, penalty, self.n_best)


@dataclasses.dataclass(frozen=True)
class ShrinkingSearch:
    """A `ModelSearch` that drops finished sentences.

    When at most half of the rows are unfinished, the number of rows is halved. Searches with the same model
    and settings share compiled programs.

    Attributes:
      search: the search, which is run in several programs.
      min_hypotheses: the number of rows is halved only if this many hypotheses remain on each device.
      mesh: the devices that the rows are split over; if None, one device.
    """

    search: ModelSearch
    min_hypotheses: int = MIN_HYPOTHESES
    mesh: Mesh | None = None

    def __call__(
        self,
        params: PyTree,
        source: Int[np.ndarray, "b s"],
        limits: Int[np.ndarray, "b"],
        length: int,
        prefix: Int[np.ndarray, "b p"] | None = None,
        sentence_ids: Int[np.ndarray, "b"] | None = None,
    ) -> SearchResult:
        """Returns the outputs of each row as NumPy arrays; see `ModelSearch.__call__` for the arguments."""
        num_sentences = len(source)
        sentence_ids = np.arange(num_sentences) if sentence_ids is None else sentence_ids
        padded = pad_batch((source, limits, prefix, sentence_ids), self._num_devices)
        source, limits, prefix, sentence_ids = self._split_rows(padded)
        rows = _start(self.search, params, source, limits, length, prefix, sentence_ids)
        members, outputs = np.arange(len(source)), None
        for number, size in enumerate(cache_sizes(length)):
            rows = _resize_cache(self.search, rows, size) if number else rows
            while True:
                half = self._half(len(members))
                rows, finished, result = _advance(self.search, params, rows, size, half, self.mesh)
                finished, result = jax.device_get((finished, result))
                outputs = result if outputs is None else _updated(outputs, members, result)
                unfinished = np.flatnonzero(~finished)
                if not len(unfinished):
                    return jax.tree.map(lambda x: x[:num_sentences], outputs)
                if len(unfinished) > half:
                    break
                while len(unfinished) <= self._half(half):
                    half = self._half(half)
                kept = np.append(unfinished, np.flatnonzero(finished))[:half]
                rows, members = self._split_rows(select_rows(rows, kept)), members[kept]
        return jax.tree.map(lambda x: x[:num_sentences], outputs)

    @property
    def _num_devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def _split_rows(self, tree: PyTree) -> PyTree:
        """Splits the rows of arrays over the devices."""
        if self.mesh is None:
            return tree
        specs = _row_specs(tree, self.mesh)
        return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs))

    def _half(self, num_rows: int) -> int:
        """Returns half of `num_rows`, or 0 if a device would have fewer than `min_hypotheses` hypotheses."""
        half, rest = divmod(num_rows, 2 * self._num_devices)
        is_enough = half * self.search.num_hypotheses >= self.min_hypotheses
        return num_rows // 2 if is_enough and not rest else 0


_start = jax.jit(ModelSearch.start, static_argnames=("self", "length"))
_resize_cache = jax.jit(ModelSearch.resize_cache, static_argnames=("self", "length"))


@functools.partial(jax.jit, static_argnames=("search", "length", "max_unfinished", "mesh"))
def _advance(search, params, rows, length, max_unfinished, mesh):
    def advance(params, rows, axes=()):
        rows = search.advance(params, rows, length, max_unfinished, axes)
        return rows, rows.state.finished, search.result(rows)

    if mesh is None:
        return advance(params, rows)
    # The compiler alone would gather the logits of all rows on every device, to find the largest of each row.
    specs, split = _row_specs(rows, mesh), PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        functools.partial(advance, axes=mesh.axis_names),
        mesh=mesh,
        in_specs=(PartitionSpec(), specs),
        out_specs=(specs, split, split),
        check_vma=False,  # the number of steps is equal on all devices, which JAX cannot infer
    )(params, rows)


def _row_specs(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns specs that split the rows of each array over all devices."""
    return jax.tree.map(lambda x: PartitionSpec(mesh.axis_names) if x.ndim else PartitionSpec(), tree)


@jax.jit
def select_rows(rows: SearchRows, indices: Int[Array, "c"]) -> SearchRows:
    """Returns the state of the selected sentences."""
    return jax.tree.map(lambda x: x[indices] if x.ndim else x, rows)


def _updated(outputs: SearchResult, members: Int[np.ndarray, "c"], result: SearchResult) -> SearchResult:
    """Returns a copy of the outputs in which `result` replaces the rows `members`."""

    def replace(old, new):
        old = old.copy()
        old[members] = new
        return old

    return jax.tree.map(replace, outputs, result)
