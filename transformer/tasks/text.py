"""Base of the tasks on text: a corpus, a vocabulary, and a model over its tokens."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transformer.batch import TokenBatch
from transformer.config import ExperimentConfig, UserError, choose, result_hash
from transformer.data.builders import (
    check_data,
    check_kind,
    check_split_name,
    is_prepared,
    options_type,
    present_name,
    resolve_options,
)
from transformer.data.corpus import VOCABULARY_FILE, Corpus
from transformer.data.records import kind_of
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.length_penalty import PENALTIES
from transformer.files import atomic_write
from transformer.model import build_model
from transformer.tasks.checks import (
    check_model_kind,
    check_raw_data,
    check_stored_config,
    check_stored_content,
    check_training,
)
from transformer.tasks.task import LoadedModel, Task


class TextTask(Task):
    """Base class of tasks on text.

    Attributes:
      plan: the assignment of the training split to batches.
      corpus: the tokens of each split, and the vocabulary.
    """

    criterion = "nll"
    plan: Any

    def __init__(self, config: ExperimentConfig, corpus: Corpus):
        self.config, self.corpus = config, corpus
        self.model = build_model(config.model, corpus.tokenizer.vocab_size)

    @classmethod
    def resolve(cls, config):
        build_model(config.model, vocab_size=1)  # checks the names of the model
        check_model_kind(cls, config)
        check_training(config)
        choose(PENALTIES, config.decode.penalty, "decode.penalty")
        return dataclasses.replace(config, data=resolve_options(config.data))

    @classmethod
    def default_options(cls, data):
        return resolve_options(dataclasses.replace(data, options={})).options

    @classmethod
    def options_type(cls, config):
        return options_type(config.data.name)

    @classmethod
    def check_split_name(cls, config, split):
        check_split_name(config.data, split)

    @classmethod
    def present_data(cls, config):
        return present_name(config.data)

    @classmethod
    def check_data(cls, config):
        check_data(config.data, cls.records)

    @classmethod
    def is_prepared(cls, config, identity):
        return is_prepared(config.data, identity["data"])

    @classmethod
    def prepare(cls, config, progress=None):
        return cls(config, Corpus(config.data, progress=progress))

    def describe_data(self):
        corpus, row_length = self.corpus, self.config.data.row_length
        splits = {name: corpus.split(name) for name in corpus.splits if corpus.size(name)}
        sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
        kind, details = kind_of(corpus.columns), ""
        if kind == "pairs":
            dropped = int((splits["train"].lengths > row_length).sum()) if "train" in splits else 0
            details = f"training drops {dropped:,} pairs longer than data.row_length ({row_length}); "
        return (
            f"{corpus.name} is prepared in {corpus.folder}: {kind}: {sizes}; {details}"
            f"vocabulary: {corpus.tokenizer.vocab_size:,} tokens"
        )

    @property
    def splits(self):
        return self.corpus.tokenized_splits

    def check_split(self, name):
        self.corpus.split(name)

    @classmethod
    def planned_model(cls, config):
        return build_model(config.model, config.data.vocab_size)

    @classmethod
    def step_shape(cls, config):
        parts, length = config.train.accumulation, config.data.row_length
        rows = -(-config.train.batch_tokens // length)
        rows += -rows % parts
        return {"vocab_size": config.data.vocab_size, "rows": rows, "row_length": length, "parts": parts}

    @classmethod
    def open(cls, config, folder, progress=None, stored=None, may_prepare=True, tokenizer=None):
        check_kind(config.data, cls.records)
        path = folder / VOCABULARY_FILE
        if stored is None:
            corpus = Corpus(config.data, tokenizer, progress, run_folder=folder)
            atomic_write(path, corpus.tokenizer.model)
            return cls(config, corpus)
        if may_prepare:
            check_stored_config(cls, config, folder, stored)
        tokenizer = _load_tokenizer(path, stored)
        prepared = stored["data"]
        if may_prepare:
            check_raw_data(folder, prepared, present_name(config.data))
            if not is_prepared(config.data, prepared):
                prepared = None
        corpus = Corpus(config.data, tokenizer, progress, prepared, folder)
        check_stored_content(folder, corpus.folder, corpus.content, stored)
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
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    @property
    def uniform_loss(self) -> float:
        return math.log(self.corpus.tokenizer.vocab_size)


def token_shapes(num_rows: int, length: int) -> TokenBatch:
    """Returns the shapes of rows of `length` tokens."""
    return TokenBatch(*[jax.ShapeDtypeStruct((num_rows, length), jnp.int32)] * len(TokenBatch._fields))


def finite_exp(x: float) -> float:
    """Returns e^x, or infinity if it is too large for a floating-point number."""
    return math.exp(x) if x < 700 else math.inf


def without_infinite(summary: Mapping[str, float]) -> dict[str, float]:
    """Leaves out values that are infinite or NaN, except for the losses, which show that a run diverged."""
    return {name: value for name, value in summary.items() if value < math.inf or name in ("loss", "nll")}


def _load_tokenizer(path: Path, identity: Mapping[str, Any]) -> Tokenizer:
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
