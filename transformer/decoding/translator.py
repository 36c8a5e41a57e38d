"""Strings in, strings out."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

from transformer.config import DecodeConfig, UserError
from transformer.data.plan import buckets
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.search import beam_search, greedy_search
from transformer.model import longest_sequence


class Translator:
    """Translates sentences with a trained model."""

    def __init__(
        self, model: nn.Module, params: PyTree, tokenizer: Tokenizer, config: DecodeConfig | None = None
    ):
        """Uses `config`'s search; None: the paper's, beam 4 and alpha 0.6."""
        self._model, self._tokenizer = model, tokenizer
        self._params = jax.device_put(params)
        self._config = config or DecodeConfig()
        self._longest = longest_sequence(model.config)
        self._search = jax.jit(self._find, static_argnames="length")

    def __call__(
        self, texts: Sequence[str], progress: Callable[[int], None] = lambda done: None
    ) -> list[str]:
        """The translations, in order; a text without pieces has an empty one.

        Args:
          texts: sentences.
          progress: is told how many are done.

        Raises:
          UserError: a sentence is longer than the model can place.
        """
        pieces = self._tokenizer.encode_all(texts)
        lengths = np.array([len(one) for one in pieces], int)
        too_long = np.flatnonzero(lengths > (self._longest or np.inf))
        if len(too_long):
            number = too_long[0]
            raise UserError(
                f"line {number + 1} has {lengths[number]} pieces; "
                f"the model's positions end at {self._longest}"
            )
        translations = [""] * len(texts)
        done = 0
        shapes: dict[int, int] = {}  # one a bucket: few rows for few texts, full batches otherwise
        filled = np.flatnonzero(lengths > 1)  # more than EOS
        for members, length, rows in buckets(lengths[filled], self._config.batch_tokens):
            members = filled[members]
            rows = shapes.setdefault(length, min(rows, 1 << (len(members) - 1).bit_length()))
            source = np.zeros((rows, length), np.int32)
            for row, member in enumerate(members):
                source[row, : lengths[member]] = pieces[member]
            for member, found in zip(members, self.search(source).tokens, strict=False):
                translations[member] = self._tokenizer.decode(found)
            done += len(members)
            progress(done)
        return translations

    def search(self, source: np.ndarray):
        """The best output of each padded source row; see `search.Found`."""
        lengths = (source != 0).sum(axis=1)
        limits = np.where(lengths > 0, lengths + self._config.max_extra, 0)
        length = source.shape[1] + self._config.max_extra
        if self._longest is not None:
            length = min(length, self._longest)
        found = self._search(self._params, source, np.minimum(limits, length).astype(np.int32), length=length)
        return jax.device_get(found)

    def _find(self, params, source, limits, length):
        variables, beam_size, alpha = {"params": params}, self._config.beam_size, self._config.length_penalty
        memory, state = self._model.apply(variables, source, beam_size, length, method="start")

        def step(tokens, state, index):
            return self._model.apply(variables, memory, state, tokens, index, method="step")

        search = greedy_search if beam_size == 1 else functools.partial(beam_search, beam_size=beam_size)
        return search(step, state, limits, length, alpha=alpha)
