"""Translators with random weights. Translators with equal settings share compiled programs."""

import functools

import jax
import numpy as np

from tests.support.tiny import tiny_config
from transformer.batch import TokenBatch
from transformer.config import DecodeConfig
from transformer.data.batching import pad_rows
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.translator import Translator
from transformer.model import build_model, init_params

VOCAB_SIZE = 24
# The fifth text has 41 tokens and is split; the others have at most 16.
TEXTS = [
    "a man in a hat",
    "two dogs jump",
    "",
    "a",
    "one two three four five six seven eight",
    "a man",
]
LEARNED = (("positions", "learned"), ("max_positions", 12))  # a model that reads at most 12 tokens


@functools.cache
def tokenizer() -> Tokenizer:
    """A vocabulary of the characters of `TEXTS`."""
    return Tokenizer.train(TEXTS * 3, "char", VOCAB_SIZE)


@functools.cache
def model_and_params(**changes):
    """A model of one layer, and weights that make its predictions far from uniform."""
    model = build_model(tiny_config(num_layers=1, **changes), VOCAB_SIZE)
    return model, jax.tree.map(lambda x: 2 * np.asarray(x), init_params(model, seed=3))


def translator(kind=Translator, *, n_best=1, params=None, model_changes=(), **decode) -> Translator:
    """A translator for batches of two sentences of 16 tokens, with three hypotheses per sentence.

    Args:
      kind: class of the translator.
      n_best: translations per text.
      params: weights; if None, the weights of `model_and_params`.
      model_changes: fields of the model config that differ from `tiny_config`.
      **decode: fields of the search config that differ from the defaults.
    """
    model, initial_params = model_and_params(**dict(model_changes))
    defaults = {"beam_size": 3, "max_extra_length": 5, "batch_tokens": 32, "max_source_length": 16}
    config = DecodeConfig(**defaults | decode)
    return kind(model, initial_params if params is None else params, tokenizer(), config, n_best)


def model_log_probs(texts, targets):
    """Log-probabilities of given target tokens from the model alone, one text per row, 0 in padding."""
    model, params = model_and_params()
    source, target = pad_rows(tokenizer().encode_all(texts), 18, 6), pad_rows(targets, 22, 6)
    batches = TokenBatch.from_tokens(source), TokenBatch.from_tokens(target)
    logits = np.float64(teacher_forced_logits(model, params, *batches))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    scores = np.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
    return np.where(target != 0, scores, 0)[: len(texts)]


@functools.partial(jax.jit, static_argnames="model")
def teacher_forced_logits(model, params, source, target):
    return model.apply({"params": params}, source, target)
