"""Translation from text to text."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from transformer.config import PAD, DecodeConfig, UserError
from transformer.data.batching import LengthBatch, length_batches, pad_rows
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.long_inputs import split_tokens
from transformer.decoding.model_search import ModelSearch, ShrinkingSearch
from transformer.decoding.search import SearchResult
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble
from transformer.model.masks import NEG_INF
from transformer.training.parallelism import local_mesh

# A vocabulary learned from unusual text may contain line ends, but a translation is one line of a text file.
LINE_ENDS = str.maketrans("\n\r", "  ")

# Number of batches searched at the same time. One batch uses the cores that the other leaves idle.
NUM_THREADS = 2

PART_STRIDE = 1_000_003  # difference between the sentence ids of consecutive parts of a text


class Hypothesis(NamedTuple):
    """A translation.

    Attributes:
      text: the translation, without line ends.
      score: log-probability in nats divided by the length penalty; the sum over the parts of a split text.
      ended: whether the model ended the translation, or each part of a split text, before the limit.
    """

    text: str
    score: float
    ended: bool


class _Request(NamedTuple):
    """A search for the translation of a text, or of a part of a text.

    Attributes:
      text_index: index of the text.
      tokens: tokens of the text or part; the last token is EOS.
      separator: see `long_inputs.Part`.
      sentence_id: see `Sampler`.
      prefix: first tokens of the output.
    """

    text_index: int
    tokens: Int[np.ndarray, "s"]
    separator: str
    sentence_id: int
    prefix: Int[np.ndarray, "p"] | None


class Translator:
    """Translates sentences with a trained model.

    A sentence longer than `max_source_length` is split into parts (long_inputs.py), each translated as if it
    were a sentence.

    Attributes:
      max_source_length: largest number of tokens of a sentence that is not split, EOS included. It is the
        smaller of `decode.max_source_length` and the number of the model's positions.
    """

    def __init__(
        self,
        model: EncoderDecoder | Ensemble,
        params: PyTree,
        tokenizer: Tokenizer,
        config: DecodeConfig | None = None,
        n_best: int = 1,
        mesh: Mesh | None = None,
    ):
        """Sets up a search.

        Args:
          model: the model.
          params: the weights of the model.
          tokenizer: the vocabulary.
          config: settings of the search; if None, the paper's (beam size 4, alpha 0.6).
          n_best: number of translations per text.
          mesh: devices that the texts are split over; if None, all accelerators of this process.
        """
        local = local_mesh()
        mesh = mesh or (local.mesh if local else None)
        self._model, self._tokenizer = model, tokenizer
        self._params = jax.device_put(params, mesh and NamedSharding(mesh, PartitionSpec()))
        self._config = config or DecodeConfig()
        self._search = ShrinkingSearch(ModelSearch(model, self._config, n_best), mesh=mesh)
        self._batch_tokens = self._config.batch_tokens * (mesh.size if mesh else 1)
        limit = self._config.max_source_length
        self.max_source_length = min(limit, model.max_lengths.source or limit)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Returns the best translation of each text, or its first sample; see `hypotheses`."""
        return [hypotheses[0].text for hypotheses in self.hypotheses(texts)]

    def hypotheses(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str] | None = None,
        first: int = 0,
        progress: Callable[[int], None] = lambda num_done: None,
        on_split: Callable[[int, int, int], None] = lambda text_index, num_tokens, num_parts: None,
    ) -> list[list[Hypothesis]]:
        """Returns the translations of each text, best first, or samples in the order of sampling.

        The best translations have distinct texts, so there may be fewer than `n_best`. Samples may be equal.

        The translation of white space is empty. If the model produces NaN, the translation is empty, its
        score is -inf and `ended` is false.

        Args:
          texts: sentences of any length. They are translated in threads, where the caller's JAX context
            managers have no effect.
          prefixes: the beginning of the translation of each text. If a text is split, the prefix is that of
            its first part.
          first: index of `texts[0]`, if the texts are part of a longer sequence. The samples for a text
            depend on its index.
          progress: called with the number of finished texts.
          on_split: called before the search for each text that is translated in parts, with its index in
            `texts`, its number of tokens and its number of parts.

        Raises:
          UserError: a prefix leaves no token for the rest of the output.
        """
        requests = self._requests(texts, prefixes, first, on_split)
        lengths = np.array([len(request.tokens) for request in requests], int)
        text_indices = np.array([request.text_index for request in requests], int)
        batches = list(length_batches(lengths, self._batch_tokens))
        num_unfinished = np.bincount(text_indices, minlength=len(texts))
        results: list[list[Hypothesis]] = [[]] * len(requests)
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            search = functools.partial(self._search_batch, requests)
            for batch, result in zip(batches, threads.map(search, batches), strict=True):
                for row, member in enumerate(batch.members):
                    results[member] = self._read(jax.tree.map(lambda x, row=row: x[row], result))
                    num_unfinished[requests[member].text_index] -= 1
                progress(int((num_unfinished == 0).sum()))
        return _join_parts(requests, results, len(texts))

    def search(
        self,
        source: Int[np.ndarray, "b s"],
        prefixes: Sequence[Int[np.ndarray, "_"]] | None = None,
        sentence_ids: Int[np.ndarray, "b"] | None = None,
    ) -> SearchResult:
        """Returns the outputs of each row as NumPy arrays.

        Args:
          source: tokens of the sentences, padded with PAD.
          prefixes: first tokens of the output of each row; rows after the last prefix have none.
          sentence_ids: see `Sampler`; if None, the row indices.

        Raises:
          UserError: a prefix leaves no token for the rest of the output.
        """
        limits, length = self.output_limits(source)
        forced = None
        if prefixes is not None:
            for row, prefix in enumerate(prefixes):
                if len(prefix) >= limits[row]:
                    number = row if sentence_ids is None else sentence_ids[row]
                    raise UserError(
                        f"prefix {number + 1} has {len(prefix)} tokens, but its output may have only "
                        f"{limits[row]}, EOS included; shorten the prefix or increase decode.max_extra_length"
                    )
            forced = pad_rows(prefixes, length, len(source))
        return self._search(self._params, source, limits, length, forced, sentence_ids)

    def output_limits(self, source: Int[np.ndarray, "b s"]) -> tuple[Int[np.ndarray, "b"], int]:
        """Returns the largest number of output tokens of each row, and an upper bound of these numbers.

        The bound depends only on the shape of `source`. The paper's limit is the input length plus 50
        (section 6.1). Padding rows have limit 0.
        """
        config, lengths = self._config, (source != PAD).sum(axis=1)
        bounds = [config.max_output_length, self._model.max_lengths.target]
        length = max(source.shape[1] + config.max_extra_length, config.min_output_length)
        length = min([length, *(bound for bound in bounds if bound is not None)])
        limits = np.minimum(np.maximum(lengths + config.max_extra_length, config.min_output_length), length)
        return np.where(lengths > 0, limits, 0).astype(np.int32), length

    def _requests(self, texts, prefixes, first, on_split) -> list[_Request]:
        """Returns the searches for all texts; see `hypotheses`. A text without tokens needs no search."""
        prefix_tokens = None if prefixes is None else self._tokenizer.encode_arrays(prefixes)
        requests: list[_Request] = []
        for index, tokens in enumerate(self._tokenizer.encode_all(texts)):
            # The text is empty (only EOS) or white space. Some vocabularies have tokens for white space.
            if len(tokens) == 1 or texts[index].isspace():
                continue
            parts = list(
                split_tokens(np.array(tokens, np.int32), self.max_source_length, self._tokenizer.starts_word)
            )
            if len(parts) > 1:
                on_split(index, len(tokens), len(parts))
            for number, part in enumerate(parts):
                # The parts of a text have different ids; otherwise equal parts would have equal samples.
                sentence_id = (first + index + PART_STRIDE * number) % 2**31
                prefix = None if prefix_tokens is None else prefix_tokens[index][: -1 if number == 0 else 0]
                requests.append(_Request(index, part.tokens, part.separator, sentence_id, prefix))
        return requests

    def _search_batch(self, requests: Sequence[_Request], batch: LengthBatch) -> SearchResult:
        members = [requests[member] for member in batch.members]
        # The padded length of a batch may exceed the model's positions; no sentence does.
        length = min(batch.length, self._model.max_lengths.source or batch.length)
        source = pad_rows([request.tokens for request in members], length, batch.num_rows)
        sentence_ids = np.zeros(batch.num_rows, np.int32)
        sentence_ids[: len(members)] = [request.sentence_id for request in members]
        prefixes = None if members[0].prefix is None else [request.prefix for request in members]
        return self.search(source, prefixes, sentence_ids)

    def _read(self, result: SearchResult) -> list[Hypothesis]:
        """Returns the hypotheses for one sentence of a search result.

        Different tokens may decode to the same text. Without sampling, each text is returned once, with its
        best score. If the model produced NaN, returns one empty hypothesis.
        """
        outputs = [
            Hypothesis(self._tokenizer.decode(tokens).translate(LINE_ENDS), float(score), bool(ended))
            for tokens, score, ended in zip(*result, strict=True)
            if score > NEG_INF / 2
        ]
        if not self._config.sampling:
            distinct: dict[str, Hypothesis] = {}
            for hypothesis in outputs:
                distinct.setdefault(hypothesis.text, hypothesis)
            outputs = list(distinct.values())
        return outputs or [Hypothesis("", -math.inf, False)]


def _join_parts(
    requests: Sequence[_Request], results: Sequence[Sequence[Hypothesis]], num_texts: int
) -> list[list[Hypothesis]]:
    """Returns the translations of each text. The parts' translations of equal rank are joined."""
    translations = [[Hypothesis("", 0.0, True)] for _ in range(num_texts)]
    pairs = zip(requests, results, strict=True)
    for index, group in itertools.groupby(pairs, key=lambda pair: pair[0].text_index):
        parts, part_results = zip(*group, strict=True)
        separators = [part.separator for part in parts]
        translations[index] = [_joined(separators, ranked) for ranked in zip(*part_results, strict=False)]
    return translations


def _joined(separators: Sequence[str], hypotheses: Sequence[Hypothesis]) -> Hypothesis:
    pairs = zip(separators, hypotheses, strict=True)
    return Hypothesis(
        text="".join(separator + hypothesis.text for separator, hypothesis in pairs if hypothesis.text),
        score=sum(hypothesis.score for hypothesis in hypotheses),
        ended=all(hypothesis.ended for hypothesis in hypotheses),
    )
