"""Strings in, strings out."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from transformer.config import EOS, DecodeConfig
from transformer.data.plan import buckets
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.search import UNENDED, Found, beam_search, greedy_search
from transformer.model.encoder_decoder import EncoderDecoder

# Vocabularies learned from odd text hold these; a translation is one line to every reader of text files.
_LINE_ENDS = str.maketrans("\n\r", "  ")


class Part(NamedTuple):
    """What is translated as one sentence.

    Attributes:
      text: number of the text it belongs to.
      pieces: closed by EOS.
      before: what joins its translation to the one of the part before it.
    """

    text: int
    pieces: np.ndarray
    before: str


def make_search(model: EncoderDecoder, config: DecodeConfig) -> Callable[..., Found]:
    """The pure function (params, source [b, s], limits [b], length) -> the best output of each row."""
    beam_size = config.beam_size
    search = greedy_search if beam_size == 1 else functools.partial(beam_search, beam_size=beam_size)

    def find(params, source, limits, length):
        variables = {"params": params}
        memory, state = model.apply(variables, source, beam_size, length, method="start")

        def step(tokens, parents, state, index):
            return model.apply(variables, memory, state, tokens, parents, index, method="step")

        return search(step, state, limits, length, alpha=config.length_penalty)

    return find


class Translator:
    """Translates sentences with a trained model.

    A sentence longer than `max_source` is translated in parts, each by itself, as if it were a sentence. It
    is cut before the last word that begins within reach, and the translations are joined by a space; where
    no word begins (Chinese, or one endless word), it is cut between two pieces and joined by nothing.

    Attributes:
      max_source: pieces of the longest sentence translated whole, EOS included: `decode.max_source`, or
        the end of the model's positions where that comes first.
    """

    def __init__(
        self, model: EncoderDecoder, params: PyTree, tokenizer: Tokenizer, config: DecodeConfig | None = None
    ):
        """Uses `config`'s search; None: the paper's, beam 4 and alpha 0.6."""
        self._tokenizer = tokenizer
        self._params = jax.device_put(params)
        self._config = config or DecodeConfig()
        self._longest = model.longest
        self.max_source = min(self._config.max_source, self._longest or self._config.max_source)
        self._search = jax.jit(make_search(model, self._config), static_argnames="length")

    def __call__(
        self,
        texts: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
        in_parts: Callable[[int, int, int], None] = lambda text, pieces, parts: None,
        at_limit: Callable[[int], None] = lambda text: None,
    ) -> list[str]:
        """The translations, in order, none with a line end in it; a text of white space has an empty one.

        Args:
          texts: sentences, of any length.
          progress: is told how many are done.
          in_parts: is told beforehand of each sentence that is translated in parts: its number in `texts`,
            counted from 0, its pieces, and how many parts they make.
          at_limit: is told of each sentence whose translation reached its limit without an end, by its
            number; of one in parts, once for each such part.
        """
        parts: list[Part] = []
        unfinished = np.zeros(len(texts), int)  # parts of each text that are not translated yet
        for text, pieces in enumerate(self._tokenizer.encode_all(texts)):
            if len(pieces) == 1 or texts[text].isspace():  # EOS alone, or what the vocabulary may not know
                continue
            cut = list(self._cut(text, np.array(pieces, np.int32)))
            if len(cut) > 1:
                in_parts(text, len(pieces), len(cut))
            unfinished[text] = len(cut)
            parts += cut
        translated = [""] * len(parts)
        shapes: dict[int, int] = {}  # one a bucket: few rows for few texts, full batches otherwise
        lengths = np.array([len(part.pieces) for part in parts], int)
        for members, length, rows in buckets(lengths, self._config.batch_tokens):
            rows = shapes.setdefault(length, min(rows, 1 << (len(members) - 1).bit_length()))
            # Padding must not reach past the positions either: there the model has no numbers.
            source = np.zeros((rows, min(length, self._longest or length)), np.int32)
            for row, member in enumerate(members):
                source[row, : lengths[member]] = parts[member].pieces
            found = self.search(source)
            for row, member in enumerate(members):
                translated[member] = self._tokenizer.decode(found.tokens[row]).translate(_LINE_ENDS)
                unfinished[parts[member].text] -= 1
                if found.score[row] < UNENDED / 2:
                    at_limit(parts[member].text)
            progress(int((unfinished == 0).sum()))
        translations = [""] * len(texts)
        both = zip(parts, translated, strict=True)
        for text, own in itertools.groupby(both, key=lambda one: one[0].text):
            translations[text] = "".join(part.before + words for part, words in own if words)
        return translations

    def search(self, source: np.ndarray) -> Found:
        """The best output of each padded source row; see `search.Found`."""
        lengths = (source != 0).sum(axis=1)
        limits = np.where(lengths > 0, lengths + self._config.max_extra, 0)
        length = source.shape[1] + self._config.max_extra
        if self._longest is not None:
            length = min(length, self._longest)
        found = self._search(self._params, source, np.minimum(limits, length).astype(np.int32), length=length)
        return jax.device_get(found)

    def _cut(self, text: int, pieces: np.ndarray) -> Iterator[Part]:
        starts_word = self._tokenizer.starts_word[pieces]
        begin, before = 0, ""
        while len(pieces) - begin > self.max_source:
            reach = begin + self.max_source - 1  # EOS closes each part
            words = np.flatnonzero(starts_word[begin + 1 : reach + 1])
            end = begin + 1 + int(words[-1]) if len(words) else reach
            yield Part(text, np.append(pieces[begin:end], np.int32(EOS)), before)
            begin, before = end, " " if starts_word[end] else ""
        yield Part(text, pieces[begin:], before)
