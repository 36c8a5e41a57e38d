"""Query heads that share keys and values: the limit of multi-head attention, and the size of the cache."""

import jax
import numpy as np

from tests.support.tiny import VOCAB, random_params, sentence_pairs, tiny_config
from transformer.model import build_model, parameter_shapes


def test_a_key_head_for_each_query_head_is_multi_head_attention_bit_for_bit():
    plain, grouped = (
        build_model(tiny_config(num_layers=1, num_kv_heads=number), VOCAB) for number in (None, 3)
    )
    assert parameter_shapes(grouped) == parameter_shapes(plain)
    params = random_params(plain)
    logits = [jax.jit(model.apply)({"params": params}, *sentence_pairs()) for model in (plain, grouped)]
    np.testing.assert_array_equal(*logits)


def test_one_key_head_is_multi_head_attention_with_equal_key_heads():
    plain, grouped = (
        build_model(tiny_config(num_layers=1, num_kv_heads=number), VOCAB) for number in (None, 1)
    )
    params = random_params(grouped)
    tiled = jax.tree.map_with_path(
        lambda path, x: np.tile(x, (1, 3)) if {"key", "value"} & {entry.key for entry in path} else x, params
    )
    logits = jax.jit(grouped.apply)({"params": params}, *sentence_pairs())
    expected = jax.jit(plain.apply)({"params": tiled}, *sentence_pairs())
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # float32 sums in another order


def test_caches_and_projections_have_only_the_key_heads():
    model = build_model(tiny_config(num_layers=1, num_heads=6, num_kv_heads=2), VOCAB)
    shapes = parameter_shapes(model)

    def start(params):
        tokens = sentence_pairs()[0].tokens
        return model.apply({"params": params}, tokens, 4, 5, method="start_decoding")

    encoder_cache, state = jax.eval_shape(start, shapes)

    for attention in ("self_attention", "cross_attention"):
        kernels = shapes["decoder"]["layers_0"][attention]
        widths = {name: kernels[name]["kernel"].shape[1] for name in ("query", "key", "value")}
        assert widths == {"query": 6 * 6, "key": 2 * 6, "value": 2 * 7}
    for cache, num_entries in ((encoder_cache.layers[0], 5), (state.layers[0], 4 * 5)):
        assert cache.key.shape == (2, 2, 6, num_entries)
        assert cache.value.shape == (2, 2, 7, num_entries)
