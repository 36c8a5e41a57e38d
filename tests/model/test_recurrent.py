"""The recurrent rivals: what each can see of the source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import VOCAB, as_int, tiny_config
from transformer.config import TransformerConfig
from transformer.model import build, init_params
from transformer.model.encoder_decoder import EncoderDecoder


@pytest.fixture(params=["recurrent", "recurrent_attention"])
def model(request):
    return build(tiny_config(kind=request.param, num_layers=1), VOCAB)


def test_the_decoder_sees_one_vector_or_an_annotation_a_piece(model, pair):
    memory, _ = model.apply({"params": init_params(model, 0)}, pair[0], 2, 9, method="start")
    width = 44 if model.attends else 22  # both directions, or one
    assert memory.annotations.shape == (2, 5 if model.attends else 1, width)
    assert (memory.keys is not None) == model.attends


def test_a_state_does_not_grow_with_the_output(model, pair):
    sizes = set()
    for length in (5, 50):
        _, state = model.apply({"params": init_params(model, 0)}, pair[0], 3, length, method="start")
        sizes.add(sum(leaf.size for leaf in jax.tree.leaves(state)))
    assert sizes == {2 * 3 * 22 * 2}  # rows, hypotheses, d_model, cell and hidden state


def test_the_encoder_reads_backwards(pair):
    """The fixed context is the state at the first piece: nearest to it the first piece, farthest the last."""
    model = build(tiny_config(kind="recurrent", num_layers=1), VOCAB)
    params = init_params(model, 0)

    def summary(source):
        return model.apply({"params": params}, as_int([source]), method="encode").summary

    source = [4, 5, 6, 7, 8, 9, 10, 11, 12, 4, 5, 2]
    change = [
        float(jnp.abs(summary(source) - summary([*source[:at], 6, *source[at + 1 :]])).max())
        for at in (0, 10)
    ]
    assert change[0] > 3 * change[1] > 0


def test_attention_weights_are_sown(pair):
    model = build(tiny_config(kind="recurrent_attention", num_layers=1), VOCAB)
    _, sown = model.apply({"params": init_params(model, 0)}, *pair, mutable=["intermediates"])
    (weights,) = sown["intermediates"]["decoder"]["weights"]
    assert weights.shape == (2, 1, 4, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert np.all(weights[1, :, :, 3:] == 0)


def test_a_kind_that_lacks_a_part_cannot_be_made():
    class Half(EncoderDecoder):
        def encode(self, source, layout=None, dropout=None):
            return source

    with pytest.raises(TypeError, match="abstract methods? decode_vectors, start, step|'decode_vectors'"):
        Half(TransformerConfig(), 9)
