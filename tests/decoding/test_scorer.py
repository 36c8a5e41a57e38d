"""Log-probabilities of given translations."""

import numpy as np
import pytest

from tests.support.translators import LEARNED, TEXTS, model_and_params, model_log_probs, tokenizer
from transformer.config import DecodeConfig, UserError
from transformer.decoding.scorer import Scorer


def scorer(model_changes=(), max_source_length=16):
    """A scorer for batches of two sentences of 16 tokens."""
    config = DecodeConfig(batch_tokens=32, max_source_length=max_source_length)
    return Scorer(*model_and_params(**dict(model_changes)), tokenizer(), config)


def test_log_probs_are_those_of_the_model():
    texts = [text for text in TEXTS if len(tokenizer().encode(text)) <= 16]
    targets = ["red hat in a", "a", "one", "", "two two two"]
    scores = scorer().log_probs(texts, targets)
    expected = model_log_probs(texts, tokenizer().encode_all(targets))
    for row, target_scores in zip(expected, scores, strict=True):
        np.testing.assert_allclose(target_scores, row[: len(target_scores)], atol=1e-4)
        assert not row[len(target_scores) :].any()
    assert scorer().log_probs([], []) == []


def test_positions_limit_texts_and_targets():
    """The model computes NaN for more tokens than it has positions."""
    limited = scorer(LEARNED, max_source_length=1_024)
    assert all(np.isfinite(scores).all() for scores in limited.log_probs(["a man", "a"], ["a", "a hat"]))
    with pytest.raises(UserError, match="target 9 has 16 tokens; it must have at most 12; shorten"):
        limited.log_probs(["a", "a man"], ["a", "a man in a hat"], first=7)


def test_a_text_beyond_the_limit_of_the_config_is_refused():
    with pytest.raises(UserError, match="text 1 has 41 tokens; it must have at most 16; shorten the text"):
        scorer().log_probs([TEXTS[4]], ["a"])
