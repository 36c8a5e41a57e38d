"""Attention maps are the model's own weights."""

import numpy as np

from transformer.evaluation.attention import attention_weights


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
