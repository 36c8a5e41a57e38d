"""Search with a model: in one program, or in several that hold fewer sentences as more are settled."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from transformer.config import DecodeConfig, UserError, choose
from transformer.decoding.sampling import sampler
from transformer.decoding.search import (
    PENALTIES,
    BeamSearch,
    ChoosingSearch,
    Found,
    Rules,
    Search,
    go_on,
    stages,
)
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble

# Hypotheses below which nothing is dropped. In XLA's products on CPU a row has the same bits in any company
# of 64 rows or more, and other ones in a smaller one (jax 0.10); neighbours must not change a translation.
FEWEST = 64


class Rows(NamedTuple):
    """What a search has of each sentence; every array but the carry's index has a row for each.

    Attributes:
      limits, prefix: as in `Rules`.
      sentences: as for `sampler`.
      memory: the model's.
      carry: the search's.
    """

    limits: Int[Array, "b"]
    prefix: Int[Array, "b p"] | None
    sentences: Int[Array, "b"]
    memory: PyTree
    carry: PyTree


class ModelSearch:
    """The search that a config asks for, with a model: pure functions of the weights."""

    def __init__(self, model: EncoderDecoder | Ensemble, config: DecodeConfig, n_best: int = 1):
        """Of the `n_best` outputs of each sentence.

        Raises:
          UserError: a penalty that there is not, more outputs than the beam holds, or a least length that
            the model's positions do not hold.
        """
        penalty = choose(PENALTIES, config.penalty, "decode.penalty")
        self._penalty = functools.partial(penalty, alpha=config.length_penalty)
        self._model, self._config, self._n_best = model, config, n_best
        self.hypotheses = n_best if config.sampling else config.beam_size
        if n_best < 1:
            raise UserError(f"the {n_best} best are asked for; it must be at least 1")
        if n_best > self.hypotheses:
            raise UserError(f"decode.beam_size is {self.hypotheses}; the {n_best} best need at least as many")
        most = model.longest.target
        if most is not None and config.min_length > most:
            raise UserError(
                f"decode.min_length is {config.min_length}; the model places at most {most} pieces"
            )

    def __call__(
        self,
        params: PyTree,
        source: Int[Array, "b s"],
        limits: Int[Array, "b"],
        length: int,
        prefix: Int[Array, "b p"] | None = None,
        sentences: Int[Array, "b"] | None = None,
    ) -> Found:
        """The outputs of each row, all in one program.

        Args:
          params: weights.
          source: sentences; a row of padding has limit 0.
          limits, prefix: as in `Rules`.
          length: static bound on the limits.
          sentences: as for `sampler`; None: the rows' numbers.
        """
        rows = self.begin(params, source, limits, length, prefix, sentences)
        for room in stages(length):
            rows = self.go_on(params, self.grow(rows, room), room)
        return self.end(rows)[1]

    def begin(self, params, source, limits, length, prefix=None, sentences=None) -> Rows:
        """Encodes; arguments as for a call."""
        sentences = jnp.arange(len(source)) if sentences is None else sentences
        memory, state = self._model.apply(
            {"params": params}, source, self.hypotheses, stages(length)[0], method="start"
        )
        rows = Rows(limits, prefix, sentences, memory, None)
        return rows._replace(carry=self._search(rows).begin(state, self._rules(rows), length))

    def grow(self, rows: Rows, room: int) -> Rows:
        """With room for so many pieces."""
        return rows._replace(carry=rows.carry._replace(state=self._model.grow(rows.carry.state, room)))

    def go_on(self, params: PyTree, rows: Rows, room: int, fewest: int = 0) -> Rows:
        """See `search.go_on`."""

        def step(tokens, parents, state, index):
            return self._model.apply(
                {"params": params}, rows.memory, state, tokens, parents, index, method="step"
            )

        carry = go_on(self._search(rows), step, self._rules(rows), rows.carry, room, fewest)
        return rows._replace(carry=carry)

    def end(self, rows: Rows) -> tuple[Array, Found]:
        """Which sentences are settled, and what was found."""
        search, rules = self._search(rows), self._rules(rows)
        return search.settled(rules, rows.carry), search.end(rules, rows.carry)

    def _rules(self, rows: Rows) -> Rules:
        return Rules(rows.limits, self._config.min_length, rows.prefix)

    def _search(self, rows: Rows) -> Search:
        config = self._config
        if config.sampling:
            key = jax.random.key(config.seed)
            draw = sampler(key, rows.sentences, config.temperature, config.top_k, config.top_p)
            return ChoosingSearch(self.hypotheses, self._penalty, draw)
        if self.hypotheses == 1:
            return ChoosingSearch(penalty=self._penalty)
        return BeamSearch(self.hypotheses, self._penalty, self._n_best)


class ShrinkingSearch:
    """A `ModelSearch` that drops settled sentences: where half of the rows would do, it goes on with half."""

    def __init__(self, model: EncoderDecoder | Ensemble, config: DecodeConfig, n_best: int = 1):
        """As for `ModelSearch`."""
        search = ModelSearch(model, config, n_best)
        self._hypotheses = search.hypotheses
        self._begin = jax.jit(search.begin, static_argnames="length")
        self._grow = jax.jit(search.grow, static_argnames="room")

        def advance(params, rows, room, fewest):
            rows = search.go_on(params, rows, room, fewest)
            return rows, *search.end(rows)

        self._advance = jax.jit(advance, static_argnames=("room", "fewest"))

    def __call__(
        self,
        params: PyTree,
        source: Int[np.ndarray, "b s"],
        limits: Int[np.ndarray, "b"],
        length: int,
        prefix: Int[np.ndarray, "b p"] | None = None,
        sentences: Int[np.ndarray, "b"] | None = None,
    ) -> Found:
        """The outputs of each row, in memory of the host; arguments as for `ModelSearch`."""
        rows = self._begin(params, source, limits, length=length, prefix=prefix, sentences=sentences)
        members, outputs = np.arange(len(source)), None
        for room in stages(length):
            rows = self._grow(rows, room=room)
            while True:
                half = self._half(len(members))
                rows, settled, found = self._advance(params, rows, room=room, fewest=half)
                settled, found = jax.device_get((settled, found))
                outputs = found if outputs is None else _written(outputs, members, found)
                left = np.flatnonzero(~settled)
                if not len(left):
                    return outputs
                if len(left) > half:
                    break
                while len(left) <= self._half(half):
                    half = self._half(half)
                chosen = np.append(left, np.flatnonzero(settled))[:half]
                rows, members = _chosen(rows, chosen), members[chosen]
        return outputs

    def _half(self, rows: int) -> int:
        """How many rows so many are cut to; 0: they are not."""
        return rows // 2 if rows // 2 * self._hypotheses >= FEWEST else 0


@jax.jit
def _chosen(rows: Rows, chosen: Int[Array, "c"]) -> Rows:
    return jax.tree.map(lambda x: x[chosen] if x.ndim else x, rows)


def _written(outputs: Found, members: Int[np.ndarray, "c"], found: Found) -> Found:
    """The outputs, those of some rows anew."""

    def written(old, new):
        old = old.copy()
        old[members] = new
        return old

    return jax.tree.map(written, outputs, found)
