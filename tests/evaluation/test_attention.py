"""Attention maps are the model's own weights."""

import numpy as np
import pytest

from tests.tiny import VOCAB, tiny_config
from transformer.config import UserError
from transformer.evaluation.attention import attention_weights
from transformer.model import build, init_params


def test_weights(tiny):
    source, target = [4, 5, 6, 7, 2], [10, 11, 2]
    weights = attention_weights(*tiny, source, target)
    assert weights.encoder.shape == (2, 3, 5, 5)
    assert weights.decoder.shape == (2, 3, 3, 3)
    assert weights.cross.shape == (2, 3, 3, 5)
    for one in weights:
        np.testing.assert_allclose(one.sum(axis=-1), 1, rtol=1e-5)
    assert np.all(np.triu(weights.decoder[0, 0], 1) == 0)
    assert not np.allclose(weights.cross[0], weights.cross[1])


def test_a_recurrent_decoder_attends_to_the_source_alone():
    model = build(tiny_config(kind="recurrent_attention", num_layers=1), VOCAB)
    weights = attention_weights(model, init_params(model, 0), [4, 5, 6, 7, 2], [10, 11, 2])
    assert weights.encoder is weights.decoder is None
    assert weights.cross.shape == (1, 1, 3, 5)
    np.testing.assert_allclose(weights.cross.sum(axis=-1), 1, rtol=1e-5)


def test_a_fixed_context_has_nothing_to_show():
    model = build(tiny_config(kind="recurrent", num_layers=1), VOCAB)
    with pytest.raises(UserError, match="model.kind='recurrent' has no attention to show"):
        attention_weights(model, init_params(model, 0), [4, 2], [10, 2])
