"""Language modeling: documents, a decoder-only model, cross-entropy and bits per byte."""

import functools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from transformer.batch import TextBatch
from transformer.config import UserError
from transformer.data.pipeline import serve
from transformer.data.records import ContentDigest
from transformer.data.splits import Split
from transformer.data.windows import WindowBatches, WindowPlan, assemble_windows, evaluation_windows
from transformer.evaluation.languages import has_spaces
from transformer.evaluation.metrics import METRICS
from transformer.json_files import finite
from transformer.model.decoder_only import DecoderOnly
from transformer.model.dropout import Dropout
from transformer.model.embedding import LogitFactors
from transformer.tasks.task import Evaluated, eval_totals
from transformer.tasks.text import TextTask, finite_exp, token_shapes, without_infinite
from transformer.training.losses import summed_cross_entropy
from transformer.training.metric_log import add_totals
from transformer.training.trainable import Hyperparameters, Totals

log = logging.getLogger(__name__)

DOCUMENT_METRICS = ("loss", "nll", "accuracy", "perplexity", "perplexity_per_word", "bits_per_byte")


class Documents(NamedTuple):
    """Documents to predict.

    Attributes:
      name: name of the split, for messages.
      split: their tokens.
      num_words: number of words in the texts, which white space separates.
      is_exact: whether the tokens of every document decode to its text.
      digest: `ContentDigest` of the texts.
    """

    name: str
    split: Split
    num_words: int
    is_exact: bool
    digest: str
    items = "tokens"

    @property
    def num_items(self) -> int:
        """Number of tokens."""
        return int(self.split.target.lengths.sum())


class LanguageModeling(TextTask):
    """Predicts each token of a document from the tokens before it (Radford et al. 2018).

    A row has `data.row_length` tokens. Long documents are cut, so a token sees at most that many tokens.

    Differs from the paper: there is no source, and no translation is searched for.
    """

    records = "documents"
    kinds = ("decoder_only",)

    @classmethod
    def resolve(cls, config):
        config = super().resolve(config)
        if config.model.prefix != "causal":
            raise UserError(
                f"model.prefix is {config.model.prefix!r}; with task=language_modeling, it must be causal, "
                "since there is no source"
            )
        return config

    @property
    def metadata(self) -> dict[str, Any]:
        return {"trained_lengths": [0, self.config.data.row_length]}

    @functools.cached_property
    def plan(self) -> WindowPlan:
        """The assignment of tokens to training batches.

        Raises:
          UserError: a row has more tokens than the model has positions.
        """
        data, train = self.config.data, self.config.train
        limit = self.model.max_length
        if limit is not None and data.row_length > limit:
            raise UserError(
                f"data.row_length is {data.row_length}, but model.positions={self.config.model.positions!r} "
                f"has only {limit} positions; increase model.max_positions"
            )
        lengths = self.corpus.split("train").target.lengths
        plan = WindowPlan(lengths, data.row_length, train.batch_tokens, train.seed)
        log.info(
            "%d documents with %s tokens, %d rows of %d tokens per step",
            len(lengths),
            f"{lengths.sum():,}",
            plan.num_rows,
            data.row_length,
        )
        return plan

    @functools.cached_property
    def is_exact(self) -> bool:
        """True if the tokens of all training and validation documents decode to their texts."""
        return not any(self.corpus.inexact(split) for split in ("train", "validation"))

    @classmethod
    def loss_fn(cls, config, model):
        return functools.partial(language_modeling_loss, model, z_loss=config.train.z_loss)

    @classmethod
    def metrics(cls, config):
        is_spaced = has_spaces(config.data.target)
        return tuple(name for name in DOCUMENT_METRICS if is_spaced or not METRICS[name].needs_spaces)

    @classmethod
    def full_rows(cls, config, num_rows):
        tokens = token_shapes(num_rows, config.data.row_length)
        return TextBatch(tokens, tokens.tokens, jax.ShapeDtypeStruct((num_rows,), jnp.int32))

    def batches(self, first_step: int) -> Iterator[TextBatch]:
        batches = WindowBatches(
            self.corpus.split("train"),
            self.corpus.tokenizer.byte_lengths,
            self.plan,
            self.config.train.steps,
            jax.process_index(),
            jax.process_count(),
        )
        return serve(batches, first_step, self.config.data.workers)

    def example_ids(self, step):
        return sorted({window.document for row in self.plan.rows(step) for window in row})

    def validation_batches(self) -> Iterator[TextBatch]:
        """Yields the whole validation split in every process, so the split need not be divided among them."""
        return _batches(self.config, self.corpus.tokenizer, self.corpus.split("validation"))

    def summary(self, totals):
        return summarize(totals, self.is_exact)

    def test_set(self, split: str) -> Documents:
        texts, content = self.corpus.texts(split)[0], ContentDigest()
        content.update((text,) for text in texts)
        return Documents(
            name=split,
            split=self.corpus.split(split),
            num_words=sum(len(text.split()) for text in texts),
            is_exact=not self.corpus.inexact(split),
            digest=content.hexdigest(),
        )

    @classmethod
    def evaluate(cls, config, loaded, params, test_set, progress=lambda num_done: None):
        """Scores a model on documents; see `Task.evaluate`."""
        loss_fn = cls.loss_fn(config, loaded.model)
        batches = _batches(config, loaded.tokenizer, test_set.split)

        def totals() -> Iterator[Totals]:
            num_tokens = 0
            for batch, batch_totals in eval_totals(config, loss_fn, params, batches):
                yield batch_totals
                num_tokens += int((batch.inputs.segment_ids != 0).sum())
                progress(num_tokens)

        summed = add_totals(totals())
        scores = summarize(summed, test_set.is_exact, test_set.num_words)
        scores = {name: finite(scores.get(name, math.nan)) for name in cls.metrics(config)}
        counts = {"documents": len(test_set.split), "tokens": int(summed["count"])}
        return Evaluated({**scores, **counts, "signatures": {}, "by_length": []})


def _batches(config, tokenizer, split: Split) -> Iterator[TextBatch]:
    """Yields batches that hold every token of a split once."""
    length = config.data.row_length
    rows = evaluation_windows(split.target.lengths, length)
    num_rows = min(len(rows), max(1, config.decode.batch_tokens // length))
    for first in range(0, len(rows), num_rows):
        yield assemble_windows(
            split, tokenizer.byte_lengths, rows[first : first + num_rows], num_rows, length
        )


def language_modeling_loss(
    model: DecoderOnly,
    params: PyTree,
    batch: TextBatch,
    key: Key[Array, ""] | None,
    hyperparameters: Hyperparameters,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Totals]:
    """Returns cross-entropy with label smoothing and z-loss, summed over tokens, in nats; see `LossFn`."""
    dropout = None if key is None else Dropout(key, hyperparameters.dropout_rate)
    factors = model.apply({"params": params}, batch.inputs, dropout, method="next_token_logit_factors")
    counts = batch.inputs.segment_ids != 0
    loss, nll, correct = summed_cross_entropy(
        LogitFactors(factors.vectors.reshape(-1, factors.vectors.shape[-1]), factors.table),
        batch.labels.reshape(-1),
        counts.reshape(-1),
        hyperparameters.label_smoothing,
        z_loss,
    )
    totals = {
        "loss": loss,
        "nll": nll,
        "correct": correct,  # tokens that are the most probable prediction
        "count": jnp.sum(counts, dtype=jnp.float32),
        "bytes": jnp.sum(batch.bytes, dtype=jnp.float32),
        "slots": jnp.float32(batch.labels.size),  # tokens and padding
    }
    return loss, totals


def summarize(totals: Mapping[str, float], is_exact: bool, num_words: int = 0) -> dict[str, float]:
    """Returns mean losses per token (in nats), perplexity, accuracy, bits per byte and the share of padding.

    If `num_words` is above 0, the perplexity per word is included. Bits per byte and perplexity per word are
    omitted if the tokens do not decode to the texts (`is_exact` is False), and a perplexity if it is too
    large for a floating-point number.
    """
    count, nll = totals["count"], totals["nll"]
    summary = {
        "loss": totals["loss"] / count,
        "nll": nll / count,
        "perplexity": finite_exp(nll / count),
        "accuracy": totals["correct"] / count,
        "padding": 1 - count / totals["slots"],
    }
    if is_exact and totals["bytes"]:
        summary["bits_per_byte"] = nll / totals["bytes"] / math.log(2)
    if is_exact and num_words:
        summary["perplexity_per_word"] = finite_exp(nll / num_words)
    return without_infinite(summary)
