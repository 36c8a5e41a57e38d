"""Translation: sentence pairs, an encoder-decoder, cross-entropy, beam search and sacreBLEU."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from transformer.batch import Batch
from transformer.config import UNK, ExperimentConfig, UserError, choose, result_hash
from transformer.data.batching import evaluation_batches
from transformer.data.bucketing import BucketedPlan
from transformer.data.builders import check_kind, is_prepared, options_type, present_name, resolve_options
from transformer.data.corpus import Corpus
from transformer.data.packing import PackedPlan
from transformer.data.pipeline import TrainingBatches, serve
from transformer.data.plan import Plan
from transformer.data.records import ContentDigest
from transformer.data.splits import Split, encode_pairs
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.length_penalty import PENALTIES
from transformer.decoding.translator import LINE_ENDS, Translator
from transformer.evaluation.attention import attention_entropies
from transformer.evaluation.metrics import Outputs, by_length, compute_scores, signatures
from transformer.files import atomic_write
from transformer.model import build_model, init_params
from transformer.model.decoder_only import DecoderOnly
from transformer.model.dropout import Dropout
from transformer.model.embedding import LogitFactors
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.positions import POSITIONS
from transformer.tasks.task import LoadedModel, Task
from transformer.training.losses import summed_cross_entropy
from transformer.training.metric_log import add_totals
from transformer.training.optimizers import make_optimizer, make_schedule
from transformer.training.parallelism import PARALLELISMS, Single, local_mesh
from transformer.training.train_step import make_eval_step
from transformer.training.trainable import Hyperparameters, LossFn, Totals

log = logging.getLogger(__name__)

VOCABULARY_FILE = "tokenizer.model"


class TestSet(NamedTuple):
    """Sentences to translate, and a reference translation of each.

    Attributes:
      name: name of the split or of the files, for messages.
      sources: raw source sentences.
      references: raw reference translations, without line ends.
    """

    name: str
    sources: Sequence[str]
    references: Sequence[str]

    @property
    def digest(self) -> str:
        """`ContentDigest` of the pairs."""
        content = ContentDigest()
        content.update(zip(self.sources, self.references, strict=True))
        return content.hexdigest()


class Evaluated(NamedTuple):
    """The scores of a model on a test set.

    Attributes:
      scores: JSON data: one score per metric, signatures, number of sentences, scores by source length.
      outputs: the sources, the translations and the references.
      num_in_parts: number of sources that were split because they were too long.
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
    def check_vectorized(cls, config):
        for name, size in (("fsdp", config.train.fsdp), ("tensor", config.train.tensor)):
            if size > 1:
                raise UserError(f"train.{name} is {size}, but runs in one program are not split; set it to 1")
        if not build_model(config.model, vocab_size=1).supports_packing:
            raise UserError(
                f"runs with model.kind={config.model.kind} cannot be vectorized, because the shapes of their "
                "batches depend on the seed; train them one by one"
            )

    @classmethod
    def open(cls, config, folder, progress=None, stored=None, may_prepare=True, tokenizer=None):
        check_kind(config.data, "pairs")
        path = folder / VOCABULARY_FILE
        if stored is None:
            corpus = Corpus(config.data, tokenizer, progress, run_folder=folder)
            atomic_write(path, corpus.tokenizer.model)
            return cls(config, corpus)
        if may_prepare and stored["config"] != result_hash(config, options_type(config.data.name)):
            raise UserError(f"{folder}/config.json was changed after the training; restore config.json")
        tokenizer = _load_tokenizer(path, stored)
        prepared = stored["data"]
        if may_prepare:
            if (present := present_name(config.data)) not in (None, prepared):
                raise UserError(
                    f"{folder} was trained on {prepared}, but the text is now {present}; restore the text, "
                    "or train in another folder"
                )
            if not is_prepared(config.data, prepared):
                prepared = None
        corpus = Corpus(config.data, tokenizer, progress, prepared, folder)
        if corpus.content != stored["content"]:
            raise UserError(
                f"{corpus.folder} does not contain the text that {folder} was trained on; "
                f"delete {corpus.folder} and prepare the original text again"
            )
        return cls(config, corpus)

    @classmethod
    def load_model(cls, config, folder, metadata):
        tokenizer = _load_tokenizer(folder / VOCABULARY_FILE, metadata["identity"])
        trained_lengths = tuple(metadata["task"]["trained_lengths"])
        return LoadedModel(build_model(config.model, tokenizer.vocab_size, trained_lengths), tokenizer)

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        return {
            "config": result_hash(self.config, options_type(self.config.data.name)),
            "data": self.corpus.name,
            "content": self.corpus.content,
            "vocabulary": self.corpus.tokenizer.sha256,
        }

    @property
    def metadata(self) -> dict[str, Any]:
        return {"trained_lengths": list(self.plan.max_lengths)}

    @property
    def uniform_loss(self) -> float:
        return math.log(self.corpus.tokenizer.vocab_size)

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

    def init(self, seed: int) -> PyTree:
        return init_params(self.model, seed)

    def loss(self, params, batch, key, hyperparameters):
        both_sides = self.config.train.loss_on_source and isinstance(self.model, DecoderOnly)
        return translation_loss(self.model, both_sides, params, batch, key, hyperparameters)

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

    def test_set(self, split: str) -> TestSet:
        """Returns the texts of a split.

        Raises:
          UserError: there is no such split, or its data is damaged.
        """
        sources, references = self.corpus.texts(split)
        return TestSet(split, sources, [reference.translate(LINE_ENDS) for reference in references])

    def evaluate(
        self, model: EncoderDecoder, params: PyTree, split: str, progress: Callable[[int], None]
    ) -> Evaluated:
        """Translates and scores a split; see `evaluate`."""
        return evaluate(self.config, model, self.corpus.tokenizer, params, self.test_set(split), progress)


def evaluate(
    config: ExperimentConfig,
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    params: PyTree,
    test_set: TestSet,
    progress: Callable[[int], None] = lambda num_done: None,
) -> Evaluated:
    """Translates and scores a test set.

    Args:
      config: the config of the run.
      model: the model, built with `trained_lengths`.
      tokenizer: the vocabulary.
      params: the weights of the model.
      test_set: the texts.
      progress: called with the number of finished sentences.

    Raises:
      UserError: a sentence has more tokens than the model has positions.
    """
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
    num_in_parts = int((tokens.source.lengths > translator.max_source_length).sum())
    return Evaluated(scores, outputs, num_in_parts, seconds)


def _score_references(
    config: ExperimentConfig, model: EncoderDecoder, params: PyTree, tokens: Split
) -> dict[str, float]:
    """Returns the totals of a test set with teacher forcing."""
    parallelism = local_mesh() or Single()
    eval_step = make_eval_step(make_loss_fn(model), parallelism)
    hyperparameters = Hyperparameters.from_config(config)
    batches = evaluation_batches(tokens, config.decode.batch_tokens)
    return add_totals(eval_step(params, parallelism.shard(batch), None, hyperparameters) for batch in batches)


def translation_loss(
    model: EncoderDecoder,
    loss_on_source: bool,
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""] | None,
    hyperparameters: Hyperparameters,
) -> tuple[Float[Array, ""], Totals]:
    """Returns cross-entropy with label smoothing, summed over target tokens, in nats; see `LossFn`.

    With `loss_on_source`, training (with a key) also counts the source tokens as target tokens.
    """
    source, target = batch.source, batch.target
    dropout = None if key is None else Dropout(key, hyperparameters.dropout_rate)
    both_sides = loss_on_source and key is not None
    method = "both_factors" if both_sides else "factored_logits"
    factors = model.apply({"params": params}, source, target, dropout, method=method)
    sides = (source, target) if both_sides else (target,)
    labels = jnp.concatenate([side.tokens for side in sides], axis=1)
    counts = jnp.concatenate([side.segment_ids for side in sides], axis=1) != 0
    loss, nll, correct = summed_cross_entropy(
        LogitFactors(factors.vectors.reshape(-1, factors.vectors.shape[-1]), factors.table),
        labels.reshape(-1),
        counts.reshape(-1),
        hyperparameters.label_smoothing,
    )
    totals = {
        "loss": loss,
        "nll": nll,
        "correct": correct,  # target tokens that are the most probable prediction
        "count": jnp.sum(counts, dtype=jnp.float32),  # target tokens
        "tokens": sum(jnp.sum(side.segment_ids != 0, dtype=jnp.float32) for side in (source, target)),
        "characters": jnp.sum(batch.characters, dtype=jnp.float32),
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
        "perplexity": _exp(nll / count),
        "perplexity_per_character": (
            _exp(nll / totals["characters"]) if totals["characters"] and not totals["unknown"] else math.inf
        ),
        "accuracy": totals["correct"] / count,
        "padding": 1 - totals["tokens"] / totals["slots"],
    }
    return {name: value for name, value in summary.items() if value < math.inf or name in ("loss", "nll")}


def make_loss_fn(model: EncoderDecoder, loss_on_source: bool = False) -> LossFn:
    """Returns the loss of a batch as a function of the weights; see `translation_loss`."""
    return functools.partial(translation_loss, model, loss_on_source)


def check_lengths(
    model: EncoderDecoder,
    split: str,
    side_lengths: tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]],
    max_length: int | None = None,
) -> None:
    """Checks that the model can read every sentence of a split, since no sentence is clipped.

    Args:
      model: the model, built with or without `trained_lengths`.
      split: name of the split, for the message.
      side_lengths: tokens of each source and of each target in the split.
      max_length: the largest allowed length of a sentence, in tokens, which bounds memory; None for no bound.

    Raises:
      UserError: a sentence is too long.
    """
    for side, lengths, limit in zip(("source", "target"), side_lengths, model.max_lengths, strict=True):
        index = int(np.argmax(lengths))
        longest = f"pair {index + 1} of split {split!r} has a {side} of {lengths[index]:,} tokens"
        if max_length is not None and lengths[index] > max_length:
            raise UserError(
                f"{longest}, but data.row_length and decode.batch_tokens allow {max_length:,}; remove the "
                "pair, or increase decode.batch_tokens"
            )
        if limit is None or lengths[index] <= limit:
            continue
        scheme = f"model.positions={model.config.positions!r}"
        if limit in (model.trained_lengths or ()):
            policies = [
                name for name in POSITIONS[model.config.positions].overflow_policies if name != "error"
            ]
            values = " or ".join(policies)
            advice = f"{scheme} was trained on at most {limit}; add --set=model.overflow={values}"
        else:
            advice = f"{scheme} has only {limit} positions; increase model.max_positions"
        raise UserError(f"{longest}, but {advice}")


def _load_tokenizer(path: Path, identity: Mapping[str, str]) -> Tokenizer:
    """Reads the vocabulary of a run.

    Raises:
      UserError: the file is missing, or is not the vocabulary that the run was trained with.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; restore it or train the run again")
    tokenizer = Tokenizer.load(path)
    if identity["vocabulary"] != tokenizer.sha256:
        raise UserError(
            f"{path} is not the vocabulary that the checkpoints were trained with; restore the original file"
        )
    return tokenizer


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
