"""Labeled attention weights of a model for given sentences, for figures and for the explorer."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.attention_file import translation_attention
from experiments.plots import visible
from experiments.text_io import report_unknown
from experiments.trained_model import Trained
from transformer.config import BOS, UserError
from transformer.decoding.translator import Hypothesis, Translator
from transformer.evaluation.attention import (
    AttentionWeights,
    attention_weights,
    continuation_weights,
    mask_params,
)
from transformer.model.decoder_only import DecoderOnly


class AttentionView(NamedTuple):
    """The attention weights of one kind.

    Attributes:
      kind: the field of `AttentionWeights`.
      title: the kind in words.
      queries, keys: a label for each query and each key.
      query_axis, key_axis: the meaning of the labels.
      weights: the weights of each layer and head.
      mask: true where a query may attend to a key.
    """

    kind: str
    title: str
    queries: list[str]
    keys: list[str]
    query_axis: str
    key_axis: str
    weights: Float[np.ndarray, "layers h q k"]
    mask: Bool[np.ndarray, "q k"]


class ViewedSentence(NamedTuple):
    """A sentence, its translation and the attention weights with which the translation is predicted.

    Attributes:
      text: the sentence.
      output: its translation; None for a language model, which only reads the sentence.
      source, target: the tokens. A language model has only targets.
      views: the kinds of attention that the model has.
    """

    text: str
    output: str | None
    source: list[int]
    target: list[int]
    views: list[AttentionView]


def view_sentences(trained: Trained, texts: Sequence[str]) -> list[ViewedSentence]:
    """Translates sentences and computes the attention. A language model reads each sentence.

    Raises:
      UserError: a sentence is blank or has too many tokens, or the model has no attention.
    """
    for text in texts:
        if not text.strip():
            raise UserError("--sentence is empty; give a text")
    report_unknown("--sentence", texts, trained.tokenizer)
    if trained.config.task == "language_modeling":
        return [_read(trained, text) for text in texts]
    translator = Translator(trained.model, trained.params, trained.tokenizer, trained.config.decode)
    for text in texts:
        _check_length(trained.tokenizer.encode(text), translator.max_source_length)
    results = translator.hypotheses(texts)
    return [_translated(trained, text, best) for text, (best, *_) in zip(texts, results, strict=True)]


def _check_length(tokens: list[int], limit: int | None) -> None:
    if limit is not None and len(tokens) > limit:
        raise UserError(f"--sentence has {len(tokens)} tokens; it must have at most {limit}")


def _read(trained: Trained, text: str) -> ViewedSentence:
    target = trained.tokenizer.encode(text)
    _check_length(target, trained.model.max_length)
    weights, mask = (
        continuation_weights(trained.model, params, target)
        for params in (trained.params, mask_params(trained.params))
    )
    return ViewedSentence(text, None, [], target, _views(trained, [], target, weights, mask))


def _translated(trained: Trained, text: str, best: Hypothesis) -> ViewedSentence:
    source = trained.tokenizer.encode(text)
    target, weights = translation_attention(trained, source, best.text, best.ended)
    mask = attention_weights(trained.model, mask_params(trained.params), source, target)
    return ViewedSentence(text, best.text, source, target, _views(trained, source, target, weights, mask))


def _views(
    trained: Trained, source: list[int], target: list[int], weights: AttentionWeights, mask: AttentionWeights
) -> list[AttentionView]:
    names = functools.partial(token_names, trained)
    is_joint = isinstance(trained.model, DecoderOnly)
    # A decoder reads each token one place later than it predicts the token.
    read_target, predicted = names([BOS, *target[:-1]]), names(target)
    read_source = names([BOS, *source[:-1]]) if is_joint else names(source)
    titles = {
        "encoder": "self-attention within the source" if is_joint else "encoder self-attention",
        "decoder": "self-attention within the target" if is_joint and source else "decoder self-attention",
        "cross": "attention from target to source" if is_joint else "cross-attention",
    }
    labels = {
        "encoder": (read_source, read_source, "source token", "source token attended to"),
        "decoder": (predicted, read_target, "token to predict", "earlier token attended to"),
        "cross": (predicted, read_source, "target token to predict", "source token attended to"),
    }
    return [
        AttentionView(kind, titles[kind], *labels[kind], values, (visible_keys > 0).any(axis=(0, 1)))
        for kind, values, visible_keys in zip(AttentionWeights._fields, weights, mask, strict=True)
        if values is not None
    ]


def token_names(trained: Trained, tokens: Sequence[int]) -> list[str]:
    """Returns the tokens as strings in which control characters are visible."""
    return [visible(name) for name in trained.tokenizer.names(tokens)]
