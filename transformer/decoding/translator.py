"""Strings in, strings out."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from transformer.config import PAD, DecodeConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.batches import Batch, batches, padded
from transformer.decoding.parts import Part, cut
from transformer.decoding.pieces import IMPOSSIBLE
from transformer.decoding.search import Found
from transformer.decoding.shrinking import ShrinkingSearch
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble

# Vocabularies learned from odd text hold these; a translation is one line to every reader of text files.
_LINE_ENDS = str.maketrans("\n\r", "  ")

# Batches searched at the same time: what one leaves idle of the cores, another uses. Measured on two cores.
AT_ONCE = 2


class Hypothesis(NamedTuple):
    """A translation.

    Attributes:
      text: without a line end in it.
      score: log-probability in nats over the length penalty; of a text in parts, the sum of theirs.
      ended: whether it came to an end before its limit; of a text in parts, whether all of them did.
    """

    text: str
    score: float
    ended: bool


class Translator:
    """Translates sentences with a trained model.

    A sentence longer than `max_source` is translated in parts (parts.py), each as if it were a sentence.

    Attributes:
      max_source: pieces of the longest sentence translated whole, EOS included: `decode.max_source`, or
        the end of the model's positions where that comes first.
    """

    def __init__(
        self,
        model: EncoderDecoder | Ensemble,
        params: PyTree,
        tokenizer: Tokenizer,
        config: DecodeConfig | None = None,
        n_best: int = 1,
    ):
        """Uses `config`'s search; None: the paper's, beam 4 and alpha 0.6."""
        self._tokenizer = tokenizer
        self._params = jax.device_put(params)
        self._config = config or DecodeConfig()
        self._longest = model.longest
        self._n_best = n_best
        self.max_source = min(self._config.max_source, self._longest.source or self._config.max_source)
        self._search = ShrinkingSearch(model, self._config, n_best)
        self._log_probs = jax.jit(functools.partial(_log_probs, model))

    def __call__(
        self,
        texts: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
        in_parts: Callable[[int, int, int], None] = lambda text, pieces, parts: None,
        at_limit: Callable[[int], None] = lambda text: None,
    ) -> list[str]:
        """The best translations, in order; a text of white space has an empty one.

        Args:
          at_limit: is told of each sentence whose translation reached its limit without an end, by its
            number.
          texts, progress, in_parts: as for `hypotheses`.
        """
        best = [one[0] for one in self.hypotheses(texts, progress=progress, in_parts=in_parts)]
        for text, hypothesis in enumerate(best):
            if not hypothesis.ended:
                at_limit(text)
        return [hypothesis.text for hypothesis in best]

    def hypotheses(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str] | None = None,
        first: int = 0,
        progress: Callable[[int], None] = lambda done: None,
        in_parts: Callable[[int, int, int], None] = lambda text, pieces, parts: None,
    ) -> list[list[Hypothesis]]:
        """The translations of each text, in order, the best one first, or samples as they were drawn.

        Args:
          texts: sentences, of any length. They are searched in threads, which see no context manager of JAX.
          prefixes: what each translation begins with, one a text; of a text in parts, its first part.
          first: number of the first text, where texts come in blocks; what is drawn depends on it.
          progress: is told how many are done.
          in_parts: is told beforehand of each sentence that is translated in parts: its number in `texts`,
            counted from 0, its pieces, and how many parts they make.

        Raises:
          UserError: a prefix leaves no room within its sentence's limit.
        """
        parts, unfinished = self._parts(texts, in_parts)
        begins = np.cumsum(unfinished) - unfinished  # the first part of each text
        forced = self._forced(parts, prefixes)
        found: list[list[Hypothesis]] = [[]] * len(parts)

        def translate(batch: Batch) -> Found:
            # Padding must not reach past the positions either: there the model has no numbers.
            length = min(batch.length, self._longest.source or batch.length)
            source = padded([parts[member].pieces for member in batch.members], length, batch.rows)
            numbers = np.zeros(batch.rows, np.int32)
            for row, member in enumerate(batch.members):
                # The parts of one text differ, or they would share their draws.
                own = member - begins[parts[member].text]
                numbers[row] = (first + parts[member].text + 1_000_003 * own) % 2**31
            prefix = None if prefixes is None else [forced[member] for member in batch.members]
            return self.search(source, prefix, numbers)

        lengths = np.array([len(part.pieces) for part in parts], int)
        planned = list(batches(lengths, self._config.batch_tokens))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for batch, outputs in zip(planned, threads.map(translate, planned), strict=True):
                for row, member in enumerate(batch.members):
                    found[member] = self._read(jax.tree.map(lambda x, row=row: x[row], outputs))
                    unfinished[parts[member].text] -= 1
                progress(int((unfinished == 0).sum()))
        translations = [[Hypothesis("", 0.0, True)] for _ in texts]
        both = zip(parts, found, strict=True)
        for text, own in itertools.groupby(both, key=lambda one: one[0].text):
            befores, each = zip(*((part.before, hypotheses) for part, hypotheses in own), strict=True)
            translations[text] = [_joined(befores, ranked) for ranked in zip(*each, strict=False)]
        return translations

    def search(
        self,
        source: np.ndarray,
        prefixes: Sequence[np.ndarray] | None = None,
        sentences: np.ndarray | None = None,
    ) -> Found:
        """The outputs of each padded source row; see `search.Found`.

        Args:
          source: pieces [b, s].
          prefixes: pieces with which the outputs of the first rows begin.
          sentences: a number for each row, which decides what is drawn for it; None: the row's.

        Raises:
          UserError: a prefix leaves no room within its row's limit.
        """
        config, lengths = self._config, (source != PAD).sum(axis=1)
        length = source.shape[1] + config.max_extra
        bounds = [bound for bound in (config.max_length, self._longest.target) if bound is not None]
        length = min([max(length, config.min_length), *bounds])
        limits = np.minimum(np.maximum(lengths + config.max_extra, config.min_length), length)
        limits = np.where(lengths > 0, limits, 0).astype(np.int32)
        forced = None
        if prefixes is not None:
            for row, prefix in enumerate(prefixes):
                if len(prefix) >= limits[row]:
                    number = row if sentences is None else sentences[row]
                    raise UserError(
                        f"prefix {number + 1} has {len(prefix)} pieces; "
                        f"its output has at most {limits[row]}, an end among them: see decode.max_extra"
                    )
            forced = padded(prefixes, length, len(source))
        return self._search(self._params, source, limits, length, forced, sentences)

    def log_probs(self, texts: Sequence[str], targets: Sequence[str], first: int = 0) -> list[np.ndarray]:
        """The log-probability, in nats, of each piece of given translations, EOS included.

        Args:
          texts: sentences.
          targets: a translation of each.
          first: number of the first text, where texts come in blocks, for what is said of one.

        Raises:
          UserError: a side is longer than the model's positions, or than `decode.max_source`.
        """
        sides = [self._tokenizer.encode_arrays(side) for side in (texts, targets)]
        lengths = np.array([[len(one) for one in side] for side in sides], int).reshape(2, -1)
        for side, own, placed in zip(("text", "target"), lengths, self._longest, strict=True):
            most = min(self._config.max_source, placed or self._config.max_source)
            if own.max(initial=0) > most:
                number = first + int(own.argmax()) + 1
                told = f"{side} {number} has {own.max():,} pieces; at most {most:,} are scored"
                raise UserError(f"{told}: see decode.max_source and model.overflow")
        scores: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for batch in batches(lengths.max(axis=0, initial=0), self._config.batch_tokens):
            pair = [
                padded(
                    [own[member] for member in batch.members],
                    min(batch.length, most or batch.length),
                    batch.rows,
                )
                for own, most in zip(sides, self._longest, strict=True)
            ]
            found = jax.device_get(self._log_probs(self._params, *pair))
            for row, member in enumerate(batch.members):
                scores[member] = found[row, : lengths[1, member]]
        return scores

    def _parts(self, texts, in_parts) -> tuple[list[Part], np.ndarray]:
        """What is translated, and how many parts of each text there are."""
        parts: list[Part] = []
        counts = np.zeros(len(texts), int)
        for text, pieces in enumerate(self._tokenizer.encode_all(texts)):
            if len(pieces) == 1 or texts[text].isspace():  # EOS alone, or what the vocabulary may not know
                continue
            own = list(cut(text, np.array(pieces, np.int32), self.max_source, self._tokenizer.starts_word))
            if len(own) > 1:
                in_parts(text, len(pieces), len(own))
            counts[text] = len(own)
            parts += own
        return parts, counts

    def _forced(self, parts: list[Part], prefixes: Sequence[str] | None) -> list[np.ndarray]:
        """The pieces that each part's output begins with."""
        if prefixes is None:
            return []
        pieces = [one[:-1] for one in self._tokenizer.encode_arrays(prefixes)]
        begun = [-1, *(part.text for part in parts)]
        return [
            pieces[part.text] if part.text != before else pieces[part.text][:0]
            for part, before in zip(parts, begun, strict=False)
        ]

    def _read(self, found: Found) -> list[Hypothesis]:
        """The outputs of one row; of a model whose numbers are none, an empty one."""
        outputs = [
            Hypothesis(self._tokenizer.decode(tokens).translate(_LINE_ENDS), float(score), bool(ended))
            for tokens, score, ended in zip(*found, strict=True)
            if score > IMPOSSIBLE / 2
        ]
        return outputs or [Hypothesis("", -math.inf, False)]


def _joined(befores: Sequence[str], parts: Sequence[Hypothesis]) -> Hypothesis:
    """The translation of a text from those of its parts."""
    text = "".join(before + one.text for before, one in zip(befores, parts, strict=True) if one.text)
    return Hypothesis(text, sum(one.score for one in parts), all(one.ended for one in parts))


def _log_probs(model, params, source, target):
    log_probs = jax.nn.log_softmax(model.apply({"params": params}, source, target))
    return jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
