"""Translation: sentence pairs, an encoder-decoder, cross-entropy, beam search and sacreBLEU."""

import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from transformer.batch import Batch
from transformer.config import UNK, ExperimentConfig, UserError
from transformer.data.batching import evaluation_batches
from transformer.data.bucketing import BucketedPlan
from transformer.data.packing import PackedPlan
from transformer.data.pipeline import TrainingBatches, serve
from transformer.data.plan import Plan
from transformer.data.records import ContentDigest
from transformer.data.splits import Split, encode_pairs
from transformer.decoding.translator import LINE_ENDS, Translator
from transformer.evaluation.attention import attention_entropies
from transformer.evaluation.metrics import Outputs, by_length, compute_scores, metrics_for, signatures
from transformer.model import build_model
from transformer.model.decoder_only import DecoderOnly
from transformer.model.dropout import Dropout
from transformer.model.embedding import LogitFactors
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.tasks.checks import check_lengths
from transformer.tasks.task import Evaluated, eval_totals
from transformer.tasks.text import TextTask, finite_exp, token_shapes, without_infinite
from transformer.training.losses import summed_cross_entropy
from transformer.training.metric_log import add_totals
from transformer.training.trainable import Hyperparameters, Totals

log = logging.getLogger(__name__)


class SentencePairs(NamedTuple):
    """Sentences to translate, and a reference translation of each.

    Attributes:
      name: name of the split or of the files, for messages.
      sources: raw source sentences.
      references: raw reference translations, without line ends.
    """

    name: str
    sources: Sequence[str]
    references: Sequence[str]
    items = "pairs"

    @property
    def num_items(self) -> int:
        """Number of sentence pairs."""
        return len(self.sources)

    @property
    def digest(self) -> str:
        """`ContentDigest` of the pairs."""
        content = ContentDigest()
        content.update(zip(self.sources, self.references, strict=True))
        return content.hexdigest()


class Translation(TextTask):
    """Translates sentences of one language into another (paper, section 6.1)."""

    records = "pairs"
    searches = True
    row_format = "rows of {:,} tokens on each side, without padding"
    kinds = ("transformer", "decoder_only", "recurrent", "recurrent_attention")

    @classmethod
    def resolve(cls, config):
        config = super().resolve(config)
        model, train = config.model, config.train
        if train.loss_on_source and (model.kind, model.prefix) == ("decoder_only", "bidirectional"):
            raise UserError(
                "train.loss_on_source is True, but with model.prefix='bidirectional' a source token sees "
                "itself; set model.prefix=causal or train.loss_on_source=false"
            )
        return config

    @classmethod
    def check_vectorized(cls, config):
        super().check_vectorized(config)
        if not build_model(config.model, vocab_size=1).supports_packing:
            raise UserError(
                f"runs with model.kind={config.model.kind} cannot be vectorized, because the shapes of their "
                "batches depend on the seed; train them one by one"
            )

    @property
    def metadata(self) -> dict[str, Any]:
        return {"trained_lengths": list(self.plan.max_lengths)}

    @functools.cached_property
    def plan(self) -> Plan:
        """The assignment of examples to training batches.

        Raises:
          UserError: no pair fits into a row, or a sentence has more tokens than the model has positions.
        """
        training, row_length = self.corpus.split("train"), self.config.data.row_length
        make_plan = PackedPlan if self.model.supports_packing else BucketedPlan
        try:
            plan = make_plan(
                training.source.lengths,
                training.target.lengths,
                row_length,
                self.config.train.batch_tokens,
                self.config.train.seed,
            )
        except ValueError as error:
            problem = f"data.row_length is {row_length}, which is too small: {error}"
            raise UserError(f"{problem}; increase it") from None
        # A dropped pair has length 0 here, so the index of a pair stays its index in the split.
        is_used = training.lengths <= row_length
        check_lengths(self.model, "train", tuple(lengths * is_used for lengths in training.side_lengths))
        check_lengths(
            self.model,
            "validation",
            self.corpus.split("validation").side_lengths,
            max(row_length, self.config.decode.batch_tokens),
        )
        log.info(
            "%d pairs (%d dropped: longer than %d tokens), %s",
            len(training) - plan.dropped,
            plan.dropped,
            row_length,
            plan.summary,
        )
        return plan

    @classmethod
    def loss_fn(cls, config, model):
        train = config.train
        both_sides = train.loss_on_source and isinstance(model, DecoderOnly)
        return functools.partial(translation_loss, model, loss_on_source=both_sides, z_loss=train.z_loss)

    @classmethod
    def metrics(cls, config):
        return metrics_for(config.data.target)

    @classmethod
    def full_rows(cls, config, num_rows):
        side = token_shapes(num_rows, config.data.row_length)
        return Batch(side, side, jax.ShapeDtypeStruct((num_rows,), jnp.int32))

    def batches(self, first_step: int) -> Iterator[Batch]:
        split, num_steps = self.corpus.split("train"), self.config.train.steps
        batches = TrainingBatches(split, self.plan, num_steps, jax.process_index(), jax.process_count())
        return serve(batches, first_step, self.config.data.workers)

    def example_ids(self, step):
        return np.concatenate(self.plan.rows(step)).tolist()

    def validation_batches(self) -> Iterator[Batch]:
        """Yields the whole validation split in every process, so the split need not be divided among them."""
        return evaluation_batches(self.corpus.split("validation"), self.config.decode.batch_tokens)

    def summary(self, totals):
        return summarize(totals)

    def diagnostics(self, params):
        """Returns the entropy of the attention weights on the first validation batch, in nats."""
        batch = next(iter(self.validation_batches()))
        entropies = attention_entropies(self.model, params, batch.source, batch.target)
        return {f"attention_entropy.{name}": float(value) for name, value in entropies.items()}

    def test_set(self, split: str) -> SentencePairs:
        """Returns the texts of a split.

        Raises:
          UserError: there is no such split, or its data is damaged.
        """
        sources, references = self.corpus.texts(split)
        return SentencePairs(split, sources, [reference.translate(LINE_ENDS) for reference in references])

    @classmethod
    def evaluate(cls, config, loaded, params, test_set, progress=lambda num_done: None):
        """Translates and scores a test set; see `Task.evaluate`.

        Raises:
          UserError: a sentence has more tokens than the model has positions.
        """
        return _evaluate(config, *loaded, params, test_set, progress)


def _evaluate(config, model, tokenizer, params, test_set, progress) -> Evaluated:
    tokens = encode_pairs(test_set.sources, test_set.references, tokenizer)
    check_lengths(model, test_set.name, tokens.side_lengths)
    totals = _score_references(config, model, params, tokens)
    translator = Translator(model, params, tokenizer, config.decode)
    started = time.perf_counter()
    ranked = translator.hypotheses(test_set.sources, progress=progress)
    seconds = time.perf_counter() - started
    outputs = Outputs(
        sources=test_set.sources,
        hypotheses=[hypotheses[0].text for hypotheses in ranked],
        references=test_set.references,
        language=config.data.target,
        ended=[hypotheses[0].ended for hypotheses in ranked],
        summary=summarize(totals),
        num_tokens=int(totals["count"]),
    )
    scores = {
        **compute_scores(outputs),
        "signatures": signatures(config.data.target),
        "sentences": len(test_set.sources),
        "by_length": by_length(outputs, tokens.source.lengths),
    }
    notes = [f"{len(test_set.sources)} sentences in {seconds:.1f} s, compilation included"]
    if num_in_parts := int((tokens.source.lengths > translator.max_source_length).sum()):
        limit = translator.max_source_length
        notes.append(f"translated {num_in_parts} sentences of more than {limit} tokens in parts")
    return Evaluated(scores, (outputs.sources, outputs.hypotheses, outputs.references), notes)


def _score_references(
    config: ExperimentConfig, model: EncoderDecoder, params: PyTree, tokens: Split
) -> dict[str, float]:
    """Returns the totals of a test set with teacher forcing."""
    batches = evaluation_batches(tokens, config.decode.batch_tokens)
    scored = eval_totals(config, Translation.loss_fn(config, model), params, batches)
    return add_totals(totals for _, totals in scored)


def translation_loss(
    model: EncoderDecoder,
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""] | None,
    hyperparameters: Hyperparameters,
    loss_on_source: bool = False,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Totals]:
    """Returns cross-entropy with label smoothing and z-loss, summed over target tokens; see `LossFn`.

    All sums are in nats. With `loss_on_source`, training (with a key) also counts the source tokens as target
    tokens.
    """
    source, target = batch.source, batch.target
    dropout = None if key is None else Dropout(key, hyperparameters.dropout_rate)
    both_sides = loss_on_source and key is not None
    method = "source_target_logit_factors" if both_sides else "target_logit_factors"
    factors = model.apply({"params": params}, source, target, dropout, method=method)
    sides = (source, target) if both_sides else (target,)
    labels = jnp.concatenate([side.tokens for side in sides], axis=1)
    counts = jnp.concatenate([side.segment_ids for side in sides], axis=1) != 0
    loss, nll, correct = summed_cross_entropy(
        LogitFactors(factors.vectors.reshape(-1, factors.vectors.shape[-1]), factors.table),
        labels.reshape(-1),
        counts.reshape(-1),
        hyperparameters.label_smoothing,
        z_loss,
    )
    totals = {
        "loss": loss,
        "nll": nll,
        "correct": correct,  # target tokens that are the most probable prediction
        "count": jnp.sum(counts, dtype=jnp.float32),  # target tokens
        "tokens": sum(jnp.sum(side.segment_ids != 0, dtype=jnp.float32) for side in (source, target)),
        # A loss on both sides has no perplexity per character of the target.
        "characters": jnp.float32(0) if both_sides else jnp.sum(batch.characters, dtype=jnp.float32),
        "unknown": jnp.sum(target.tokens == UNK, dtype=jnp.float32),
        "slots": jnp.float32(source.tokens.size + target.tokens.size),  # tokens and padding
    }
    return loss, totals


def summarize(totals: Mapping[str, float]) -> dict[str, float]:
    """Returns mean losses per target token (in nats), perplexities, accuracy and the share of padding.

    A perplexity too large for a floating-point number is omitted. The perplexity per character is omitted if
    the targets have unknown tokens, since one unknown token may stand for several characters.
    """
    count, nll = totals["count"], totals["nll"]
    summary = {
        "loss": totals["loss"] / count,
        "nll": nll / count,
        "perplexity": finite_exp(nll / count),
        "perplexity_per_character": (
            finite_exp(nll / totals["characters"])
            if totals["characters"] and not totals["unknown"]
            else math.inf
        ),
        "accuracy": totals["correct"] / count,
        "padding": 1 - totals["tokens"] / totals["slots"],
    }
    return without_infinite(summary)
