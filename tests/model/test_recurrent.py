"""Recurrent encoder-decoders: the input of the decoder, the size of its state, and attention weights."""

import functools

import jax
import numpy as np
import pytest

from tests.support.tiny import VOCAB, random_params, sentence_pairs, tiny_config, token_batch
from transformer.model import build_model
from transformer.model.encoder_decoder import EncoderDecoder


@pytest.fixture(scope="module", params=["recurrent", "recurrent_attention"])
def weighted_model(request):
    model = build_model(tiny_config(kind=request.param, num_layers=1), VOCAB)
    return model, random_params(model)


def start_decoding(model, params, num_hypotheses, cache_length):
    """The shapes of the cache and of the state."""
    source, _ = sentence_pairs()

    def start(params):
        method = model.start_decoding
        return model.apply({"params": params}, source.tokens, num_hypotheses, cache_length, method=method)

    return jax.eval_shape(start, params)


def test_the_decoder_gets_one_vector_or_one_annotation_per_source_token(weighted_model):
    model, params = weighted_model
    cache, _ = start_decoding(model, params, num_hypotheses=2, cache_length=9)
    if model.attends:
        assert cache.annotations.shape == (2, 5, 44)  # both directions
        assert cache.keys.shape == (2, 5, 22)
    else:
        assert cache.annotations.shape == (2, 1, 22)
        assert cache.keys is None


def test_the_size_of_the_state_does_not_depend_on_the_output_length(weighted_model):
    sizes = set()
    for cache_length in (5, 50):
        _, state = start_decoding(*weighted_model, num_hypotheses=3, cache_length=cache_length)
        sizes.add(sum(leaf.size for leaf in jax.tree.leaves(state)))
    assert sizes == {2 * 3 * 22 * 2}  # rows, hypotheses, d_model, cell and hidden state


def test_the_encoder_reads_backwards():
    """The fixed context is the state at the first token, so it depends most on the first tokens."""
    model = build_model(tiny_config(kind="recurrent", num_layers=1), VOCAB)
    source = [4, 5, 6, 7, 8, 9, 10, 11, 12, 4, 5, 2]
    changed = [[6, *source[1:]], [*source[:10], 6, *source[11:]]]

    encode = jax.jit(functools.partial(model.apply, method="encode"))
    output = encode({"params": random_params(model)}, token_batch([source, *changed]))

    original, first_changed, last_changed = np.asarray(output.summary)
    first, last = (np.abs(original - summary).max() for summary in (first_changed, last_changed))
    assert first > 3 * last > 0


def test_attention_weights_are_sown():
    model = build_model(tiny_config(kind="recurrent_attention", num_layers=1), VOCAB)

    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, sown = apply({"params": random_params(model)}, *sentence_pairs())

    weights = np.asarray(sown["intermediates"]["decoder"]["weights"][0])
    assert weights.shape == (2, 1, 4, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert np.all(weights[1, :, :, 3:] == 0)


def test_a_kind_without_all_methods_cannot_be_instantiated():
    class Incomplete(EncoderDecoder):
        def encode(self, source, dropout=None):
            return source

    with pytest.raises(TypeError, match="decode_step.*decode_vectors.*start_decoding"):
        Incomplete(tiny_config(), VOCAB)
