"""The effects of positions, against the definition of each scheme."""

import numpy as np
import pytest

from tests.support.tiny import SEQUENCE_SCHEMES, VOCAB, random_params, tiny_config
from transformer.evaluation.position_effects import PositionEffects, position_effects
from transformer.model import build_model
from transformer.model.position_tables import alibi_slopes, sinusoid_table

LENGTH = 5
DISTANCES = np.arange(-(LENGTH - 1), LENGTH)


def effects_of(scheme, **changes):
    """Effects by stack, and the parameters."""
    model = build_model(tiny_config(positions=scheme, **changes), VOCAB)
    params = random_params(model)
    return position_effects(model, params, LENGTH), params


def test_a_table_is_returned_with_its_dot_products():
    effects, _ = effects_of("sinusoidal")
    expected = sinusoid_table(LENGTH, 22)
    for stack in ("encoder", "decoder"):
        np.testing.assert_allclose(effects[stack].table, expected, atol=1e-6)
        np.testing.assert_allclose(effects[stack].similarity, expected @ expected.T, atol=1e-4)
        assert effects[stack].bias is None


@pytest.mark.slow
def test_each_stack_has_its_learned_table():
    effects, params = effects_of("learned")
    for stack in ("encoder", "decoder"):
        table = params[stack]["positions"]["table"][:LENGTH]
        np.testing.assert_allclose(effects[stack].table, table, atol=1e-6)


def test_rotations_give_the_mean_cosine_by_distance():
    (effects, _) = effects_of("rope")
    angles = 10_000 ** (-np.arange(0, 6, 2) / 6)
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    expected = np.cos(distance[..., None] * angles).mean(axis=-1)
    assert effects["encoder"].table is None
    np.testing.assert_allclose(effects["encoder"].similarity, expected, atol=1e-5)


def test_a_bias_is_returned_by_distance():
    effects, _ = effects_of("alibi")
    expected = -alibi_slopes(3)[:, None] * np.abs(DISTANCES)
    np.testing.assert_allclose(effects["decoder"].bias, np.stack([expected] * 2), atol=1e-6)


def test_layers_with_equal_biases_have_one():
    bias = np.array([[[1.0, 0, 1]], [[2.0, 0, 2]]])
    by_layer = PositionEffects(None, None, bias).bias_by_layer
    assert {name: values.tolist() for name, values in by_layer.items()} == {
        "layer 1": [[1, 0, 1]],
        "layer 2": [[2, 0, 2]],
    }
    assert list(PositionEffects(None, None, bias[[0, 0]]).bias_by_layer) == ["all layers"]
    assert PositionEffects(None, None, None).bias_by_layer == {}


@pytest.mark.slow
def test_a_bias_that_depends_on_the_query_is_a_root_mean_square():
    effects, params = effects_of("relative", max_distance=2)
    vectors = params["encoder"]["positions"]["key_table"]  # [layers, h, c, d], d = 6
    clipped = np.clip(DISTANCES, -2, 2) + 2
    expected = np.sqrt(np.mean(np.square(vectors / np.sqrt(6)), axis=-1))[:, :, clipped]
    np.testing.assert_allclose(effects["encoder"].bias, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SEQUENCE_SCHEMES)
def test_every_scheme_but_none_has_an_effect(scheme):
    effects, _ = effects_of(scheme)
    for stack in ("encoder", "decoder"):
        has_effect = any(value is not None for value in effects[stack])
        assert has_effect == (scheme != "none")


def test_a_model_without_positions_has_no_effects():
    model = build_model(tiny_config(kind="recurrent_attention", num_layers=1), VOCAB)
    assert position_effects(model, random_params(model), LENGTH) == {}
