"""The classifier of images: equations in float64, invariants of every position scheme, and refused configs.

The images have 4 x 6 pixels, 3 channels and thus 2 x 3 patches of 2 x 2 pixels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import oracle
from tests.support.errors import refused
from tests.support.tiny import GRID_SCHEMES, VOCAB, random_params, tiny_config
from transformer.batch import ImageBatch, ImageFormat
from transformer.evaluation.classification import class_token_attention
from transformer.model import build_image_classifier, build_model, parameter_shapes
from transformer.model.dropout import Dropout
from transformer.model.image_classifier import POOLINGS
from transformer.model.position_tables import grid_table
from transformer.model.positions import POSITIONS

FORMAT = ImageFormat((4, 6, 3), ("a", "b", "c", "d", "e"), (0.2, 0.4, 0.5), (0.5, 0.3, 0.2))
IMAGES = np.random.default_rng(0).integers(0, 256, (8, *FORMAT.shape)).astype(np.uint8)
IDS = np.arange(1, 9, dtype=np.int32)
# Tolerance for float32 sums in a different order. Logits are of order 1.
OTHER_ORDER = 2e-5


def tiny(**changes):
    """A config with one layer, 3 heads, d_k 8, d_v 7, d_model 20 and patches of 2 x 2 pixels."""
    config = tiny_config(kind="image_classifier", num_layers=1, d_model=20, d_k=8, patch_size=2)
    return dataclasses.replace(config, **changes)


class Variant:
    """A model, its parameters, and a program for the logits of eight images, with dropout."""

    def __init__(self, **changes):
        self.model = build_image_classifier(tiny(**changes), FORMAT)
        self.params = random_params(self.model)
        self._program = jax.jit(
            lambda params, images, ids, rate: self.model.apply(
                {"params": params}, images, ids, Dropout(jax.random.key(3), rate)
            )
        )

    def logits(self, images, ids=IDS, rate=0.0):
        return np.asarray(self._program(self.params, images, ids, rate))


MEAN = {"positions": "sinusoidal_2d", "pooling": "mean"}
VARIANTS = [*({"positions": name} for name in GRID_SCHEMES), MEAN]
FAST = [{"positions": "learned"}, {"positions": "none"}, {"positions": "rope_2d"}, MEAN]


@pytest.fixture(
    scope="module",
    params=[pytest.param(changes, marks=() if changes in FAST else pytest.mark.slow) for changes in VARIANTS],
    ids=lambda changes: "-".join(changes.values()),
)
def variant(request):
    return Variant(**request.param)


def test_the_logits_equal_the_equations(variant):
    """NumPy computes one image at a time in float64."""
    config = variant.model.config
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variant.params)

    logits = variant.logits(IMAGES)

    for number in (0, 7):
        expected = oracle.image_classifier(
            IMAGES[number], FORMAT.mean, FORMAT.std, params, 3, 2, config.positions, config.pooling
        )
        np.testing.assert_allclose(logits[number], expected, rtol=1e-4, atol=1e-5)


def test_the_class_sees_all_patches(variant):
    """Image i differs from the last image in patch i only."""
    images = np.repeat(IMAGES[7:], 8, axis=0)
    for number, (row, column) in enumerate((row, column) for row in (0, 2) for column in (0, 2, 4)):
        images[number, row : row + 2, column : column + 2] = (
            255 - images[7, row : row + 2, column : column + 2]
        )

    logits = variant.logits(images)

    assert (np.abs(logits[:6] - logits[7]).max(axis=1) > 1e-3).all()
    np.testing.assert_allclose(logits[6], logits[7], atol=OTHER_ORDER)


def test_the_order_of_patches_matters_only_with_positions(variant):
    """The first two patches of the first row change places in every image."""
    swapped = IMAGES.copy()
    swapped[:, :2, :2], swapped[:, :2, 2:4] = IMAGES[:, :2, 2:4], IMAGES[:, :2, :2]

    change = np.abs(variant.logits(swapped) - variant.logits(IMAGES)).max()

    assert change < OTHER_ORDER if variant.model.config.positions == "none" else change > 1e-3


def test_dropout_depends_on_the_image_and_not_on_its_row(variant):
    """The last two rows are padding in the first batch."""
    order = np.array([3, 1, 2, 0, 4, 5])
    ids = np.where(IDS > 6, 0, IDS).astype(np.int32)
    images = np.where((IDS > 6)[:, None, None, None], 0, IMAGES).astype(np.uint8)

    first = variant.logits(images, ids, rate=0.4)
    moved = variant.logits(IMAGES[[*order, 6, 7]], IDS[[*order, 6, 7]], rate=0.4)
    renamed = variant.logits(images, ids + 10, rate=0.4)

    np.testing.assert_allclose(moved[:6], first[order], atol=OTHER_ORDER)
    assert np.abs(renamed - first)[:6].max() > 0.1
    assert np.abs(variant.logits(images, ids) - first)[:6].max() > 0.1


def test_attention_of_the_class_token_is_that_of_the_first_query():
    model = build_image_classifier(tiny(positions="learned"), FORMAT)
    params, images = random_params(model), (jnp.array(IMAGES), jnp.array(IDS))
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, state = apply({"params": params}, *images)
    weights = np.asarray(state["intermediates"]["encoder"]["layers_0"]["self_attention"]["weights"][0])

    attention = class_token_attention(model, params, ImageBatch(images[0], images[1], images[1]))

    assert attention.shape == (1, 8, 3, 2, 3)
    np.testing.assert_allclose(attention[0, :, :, 1, 2], weights[:, :, 0, 6], atol=OTHER_ORDER)
    np.testing.assert_allclose(np.sum(attention, axis=(3, 4))[0], 1 - weights[:, :, 0, 0], atol=OTHER_ORDER)


def test_without_a_class_token_there_is_no_attention_to_draw():
    model = build_image_classifier(tiny(pooling="mean"), FORMAT)
    batch = ImageBatch(jnp.array(IMAGES), jnp.array(IDS), jnp.array(IDS))
    message = refused(class_token_attention, model, {}, batch)
    assert message.startswith("model.pooling is 'mean', so there is no class token")


@pytest.mark.slow
def test_bfloat16_stays_near_float32(variant):
    half = build_image_classifier(dataclasses.replace(variant.model.config, dtype="bfloat16"), FORMAT)
    logits = half.apply({"params": variant.params}, jnp.array(IMAGES), jnp.array(IDS))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, variant.logits(IMAGES), atol=0.15)


def test_rows_and_columns_have_half_of_the_channels_each():
    """The grid has 2 x 3 places after a class token, which has the angles of row 0 and column 0."""
    table = grid_table(2, 3, 1, 8)
    sines = oracle.sinusoid(3, 4)
    assert table.shape == (7, 8)
    np.testing.assert_allclose(table[0], table[1])
    for number, (row, column) in enumerate((row, column) for row in range(2) for column in range(3)):
        np.testing.assert_allclose(table[1 + number], [*sines[row], *sines[column]], atol=1e-14)


def test_a_learned_table_has_a_vector_per_token():
    shapes = {
        pooling: parameter_shapes(build_image_classifier(tiny(positions="learned", pooling=pooling), FORMAT))
        for pooling in POOLINGS
    }
    assert shapes["class_token"]["encoder"]["positions"]["table"].shape == (7, 20)
    assert shapes["mean"]["encoder"]["positions"]["table"].shape == (6, 20)
    assert shapes["class_token"]["class_token"].shape == (20,)
    assert "class_token" not in shapes["mean"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"positions": name}, f"model.positions is '{name}'; with model.kind=image_classifier, it must be one of: learned, none, rope, rope_2d, sinusoidal, sinusoidal_2d, sinusoidal_concat")
            for name in POSITIONS if name not in GRID_SCHEMES
        ),
        ({"positions": "sinusoidal_2d", "d_model": 22}, "model.d_model is 22; it must be a multiple of 4: rows and columns each have pairs of sines and cosines"),
        ({"positions": "rope_2d", "d_k": 6}, "model.d_k is 6; it must be a multiple of 4, since 'rope_2d' rotates pairs of channels by the row and others by the column"),
        ({"attention_window": 2}, "model.attention_window is 2; it must be None with model.kind=image_classifier, since patches form a grid"),
        ({"patch_size": 3}, "model.patch_size is 3; it must divide the height and the width of the images (4 x 6 pixels)"),
        ({"pooling": "max"}, "model.pooling is 'max'; it must be one of: class_token, mean"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_configs_are_refused(changes, message):
    assert refused(build_image_classifier, tiny(**changes), FORMAT) == message


@pytest.mark.parametrize("positions", ["sinusoidal_2d", "rope_2d"])
def test_a_model_of_text_refuses_positions_of_a_grid(positions):
    message = refused(build_model, tiny_config(positions=positions, d_k=8), VOCAB)
    assert message.startswith(
        f"model.positions is '{positions}'; with model.kind=transformer, it must be one of:"
    )
