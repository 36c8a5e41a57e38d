"""Translation: sentence pairs, an encoder-decoder, cross-entropy, beam search and sacreBLEU."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from transformer.batch import Batch
from transformer.config import ExperimentConfig, UserError, choose, result_hash
from transformer.data.batching import evaluation_batches
from transformer.data.bucketing import BucketedPlan
from transformer.data.builders import options_type, resolve_options
from transformer.data.corpus import Corpus
from transformer.data.packing import PackedPlan
from transformer.data.pipeline import TrainingBatches, serve
from transformer.data.plan import Plan
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.length_penalty import PENALTIES
from transformer.decoding.translator import Translator
from transformer.evaluation.metrics import Outputs, by_length, compute_scores, signatures
from transformer.files import atomic_write
from transformer.model import build_model, init_params
from transformer.model.dropout import Dropout
from transformer.model.embedding import LogitFactors
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.positions import POSITIONS
from transformer.tasks.task import LoadedModel, Task
from transformer.training.losses import summed_cross_entropy
from transformer.training.metric_log import add_totals
from transformer.training.optimizers import make_optimizer, make_schedule
from transformer.training.parallelism import PARALLELISMS, Single
from transformer.training.train_step import make_eval_step
from transformer.training.trainable import Hyperparameters, LossFn, Totals

log = logging.getLogger(__name__)

VOCABULARY_FILE = "tokenizer.model"
# Line ends inside a reference: a file with one sentence per line cannot hold them.
LINE_ENDS = str.maketrans("\n\r", "  ")


class Evaluated(NamedTuple):
    """The scores of a model on a split.

    Attributes:
      scores: JSON data: one figure per metric, signatures, number of sentences, scores by source length.
      outputs: the texts.
      num_in_parts: number of sources that were too long to be translated in one go.
      seconds: duration of the search, compilation included.
    """

    scores: dict[str, Any]
    outputs: Outputs
    num_in_parts: int
    seconds: float


class Translation(Task):
    """Translates sentences of one language into another (paper, section 6.1).

    Attributes:
      config: the resolved config.
      corpus: the tokens of each split, and the vocabulary.
      model: the model without weights; every method takes the weights as an argument.
    """

    criterion = "nll"

    def __init__(self, config: ExperimentConfig, corpus: Corpus):
        self.config, self.corpus = config, corpus
        self.model = build_model(config.model, corpus.tokenizer.vocab_size)

    @classmethod
    def resolve(cls, config):
        build_model(config.model, vocab_size=1)  # checks the names of the model
        make_optimizer(config.optimizer, make_schedule(config.optimizer, 1.0, config.train.steps))
        choose(PARALLELISMS, config.train.parallelism, "train.parallelism")
        choose(PENALTIES, config.decode.penalty, "decode.penalty")
        return dataclasses.replace(config, data=resolve_options(config.data))

    @classmethod
    def open(cls, config, folder, progress=None):
        path = folder / VOCABULARY_FILE
        corpus = Corpus(config.data, Tokenizer.load(path) if path.exists() else None, progress)
        if not path.exists():
            atomic_write(path, corpus.tokenizer.model)
        return cls(config, corpus)

    @classmethod
    def load_model(cls, config, folder, metadata):
        path = folder / VOCABULARY_FILE
        if not path.is_file():
            raise UserError(f"{path} is missing; restore it or train the run again")
        tokenizer = Tokenizer.load(path)
        if metadata["identity"]["vocabulary"] != tokenizer.sha256:
            raise UserError(
                f"{path} is not the vocabulary that the checkpoints were trained with; "
                "restore the original file"
            )
        trained_lengths = tuple(metadata["task"]["trained_lengths"])
        return LoadedModel(build_model(config.model, tokenizer.vocab_size, trained_lengths), tokenizer)

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        return {
            "config": result_hash(self.config, options_type(self.config.data.name)),
            "data": self.corpus.identity,
            "vocabulary": self.corpus.tokenizer.sha256,
        }

    @property
    def metadata(self) -> dict[str, Any]:
        return {"trained_lengths": list(self.plan.max_lengths)}

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

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
            raise UserError(f"data.row_length is {row_length}: {error}; raise it") from None
        check_lengths(self.model, "train", plan.max_lengths)
        check_lengths(self.model, "validation", self.corpus.split("validation").max_lengths)
        log.info(
            "%d pairs (%d dropped: longer than %d tokens), %s",
            len(training) - plan.dropped,
            plan.dropped,
            row_length,
            plan.summary,
        )
        return plan

    def init(self, seed: int) -> PyTree:
        return init_params(self.model, seed)

    def loss(self, params, batch, key, hyperparameters):
        return translation_loss(self.model, params, batch, key, hyperparameters)

    def batches(self, first_step: int) -> Iterator[Batch]:
        split, num_steps = self.corpus.split("train"), self.config.train.steps
        batches = TrainingBatches(split, self.plan, num_steps, jax.process_index(), jax.process_count())
        return serve(batches, first_step, self.config.data.workers)

    def validation_batches(self) -> Iterator[Batch]:
        """Yields the whole split in every process, so that the processes need not agree on a division."""
        return evaluation_batches(self.corpus.split("validation"), self.config.decode.batch_tokens)

    def summary(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Returns mean losses per target token (in nats), perplexities, accuracy and the share of padding."""
        count, nll = totals["count"], totals["nll"]
        return {
            "loss": totals["loss"] / count,
            "nll": nll / count,
            "perplexity": _exp(nll / count),
            "perplexity_per_character": _exp(nll / max(1.0, totals["characters"])),
            "accuracy": totals["correct"] / count,
            "padding": 1 - (count + totals["source_count"]) / totals["slots"],
        }

    def evaluate(
        self, model: EncoderDecoder, params: PyTree, split: str, progress: Callable[[int], None]
    ) -> Evaluated:
        """Translates and scores a split.

        Args:
          model: the model, built with `trained_lengths`.
          params: the weights of the model.
          split: name of the split.
          progress: called with the number of finished sentences.

        Raises:
          UserError: there is no such split, or a sentence has more tokens than the model has positions.
        """
        tokens = self.corpus.split(split)
        check_lengths(model, split, tokens.max_lengths)
        sources, references = self.corpus.texts(split)
        references = [reference.translate(LINE_ENDS) for reference in references]
        totals = self._score_references(model, params, split)

        translator = Translator(model, params, self.corpus.tokenizer, self.config.decode)
        started = time.perf_counter()
        ranked = translator.hypotheses(sources, progress=progress)
        seconds = time.perf_counter() - started
        num_in_parts = int((tokens.source.lengths > translator.max_source_length).sum())
        outputs = Outputs(
            sources=sources,
            hypotheses=[hypotheses[0].text for hypotheses in ranked],
            references=references,
            ended=[hypotheses[0].ended for hypotheses in ranked],
            summary=self.summary(totals),
            num_tokens=int(totals["count"]),
        )
        scores = {
            **compute_scores(outputs),
            "signatures": signatures(),
            "sentences": len(sources),
            "by_length": by_length(outputs, tokens.source.lengths),
        }
        return Evaluated(scores, outputs, num_in_parts, seconds)

    def _score_references(self, model, params, split) -> dict[str, float]:
        """Returns the totals of a split. A target token is predicted from the reference tokens before it."""
        parallelism = Single()
        eval_step = make_eval_step(make_loss_fn(model), parallelism)
        hyperparameters = Hyperparameters.from_config(self.config)
        batches = evaluation_batches(self.corpus.split(split), self.config.decode.batch_tokens)
        return add_totals(
            eval_step(params, parallelism.shard(batch), None, hyperparameters) for batch in batches
        )


def translation_loss(
    model: EncoderDecoder,
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""] | None,
    hyperparameters: Hyperparameters,
) -> tuple[Float[Array, ""], Totals]:
    """Returns cross-entropy with label smoothing, summed over target tokens, in nats; see `LossFn`."""
    source, target = batch.source, batch.target
    dropout = None if key is None else Dropout(key, hyperparameters.dropout_rate)
    factors = model.apply({"params": params}, source, target, dropout, method="factored_logits")
    counts = target.segment_ids != 0
    loss, nll, correct = summed_cross_entropy(
        LogitFactors(factors.vectors.reshape(-1, factors.vectors.shape[-1]), factors.table),
        target.tokens.reshape(-1),
        counts.reshape(-1),
        hyperparameters.label_smoothing,
    )
    totals = {
        "loss": loss,
        "nll": nll,
        "correct": correct,  # tokens whose most probable prediction is right
        "count": jnp.sum(counts, dtype=jnp.float32),  # target tokens
        "source_count": jnp.sum(source.segment_ids != 0, dtype=jnp.float32),
        "characters": jnp.sum(batch.characters, dtype=jnp.float32),
        "slots": jnp.float32(source.tokens.size + target.tokens.size),  # tokens and padding
    }
    return loss, totals


def make_loss_fn(model: EncoderDecoder) -> LossFn:
    """Returns the loss of a batch as a function of the weights; see `translation_loss`."""
    return functools.partial(translation_loss, model)


def check_lengths(model: EncoderDecoder, split: str, max_lengths: tuple[int, int]) -> None:
    """Checks that the model has positions for every sentence of a split, since no sentence is clipped.

    Args:
      model: the model, built with or without `trained_lengths`.
      split: name of the split, for the message.
      max_lengths: tokens of the longest source and the longest target in the split.

    Raises:
      UserError: a sentence is too long.
    """
    for side, length, limit in zip(("source", "target"), max_lengths, model.max_lengths, strict=True):
        if limit is None or length <= limit:
            continue
        scheme = f"model.positions={model.config.positions!r}"
        if limit in (model.trained_lengths or ()):
            policies = [
                name for name in POSITIONS[model.config.positions].overflow_policies if name != "error"
            ]
            advice = f"{scheme} was trained up to {limit}; give --set=model.overflow={' or '.join(policies)}"
        else:
            advice = f"{scheme} ends at {limit}; raise model.max_positions"
        raise UserError(f"split {split!r} has a {side} of {length} tokens, but {advice}")


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
