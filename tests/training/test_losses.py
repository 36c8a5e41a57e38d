"""Label smoothing, checked by hand and against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import as_int
from transformer.model.embedding import Factors
from transformer.training import losses
from transformer.training.losses import smoothed_cross_entropy, summed_cross_entropy


def test_by_hand():
    """Two classes with probabilities 3/4 and 1/4, the second one right, eps 0.2: q is (0.1, 0.9)."""
    found = smoothed_cross_entropy(jnp.log(jnp.array([[0.75, 0.25]])), as_int([1]), 0.2)
    assert float(found.loss[0]) == pytest.approx(-0.1 * np.log(0.75) - 0.9 * np.log(0.25), rel=1e-6)
    assert float(found.nll[0]) == pytest.approx(np.log(4), rel=1e-6)
    np.testing.assert_allclose(found.gradient, [[0.65, -0.65]], rtol=1e-6)
    assert not found.correct[0]


def definition(logits, labels, epsilon):
    """-sum(q log p) with the smoothed distribution written out."""
    classes = logits.shape[-1]
    target = (1 - epsilon) * jax.nn.one_hot(labels, classes) + epsilon / classes
    return -(target * jax.nn.log_softmax(logits)).sum(axis=-1)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_equals_the_one_hot_definition_gradients_included(epsilon):
    rng = np.random.default_rng(0)
    logits, labels = jnp.float32(3 * rng.normal(size=(7, 11))), as_int(rng.integers(0, 11, 7))
    found = smoothed_cross_entropy(logits, labels, epsilon)
    np.testing.assert_allclose(found.loss, definition(logits, labels, epsilon), rtol=1e-5)
    slope = jax.grad(lambda z: definition(z, labels, epsilon).sum())(logits)
    np.testing.assert_allclose(found.gradient, slope, atol=1e-6)


def test_the_smoothed_loss_is_least_at_the_smoothed_distribution():
    target = np.full(5, 0.1 / 5)
    target[2] += 0.9
    found = smoothed_cross_entropy(jnp.log(jnp.float32(target))[None], as_int([2]), 0.1)
    np.testing.assert_allclose(found.gradient, 0, atol=1e-6)


def test_correct():
    logits = jnp.array([[1.0, 3.0, 2.0], [5.0, 3.0, 2.0]])
    np.testing.assert_array_equal(smoothed_cross_entropy(logits, as_int([1, 1]), 0.1).correct, [True, False])


@pytest.fixture
def pieces():
    """17 pieces of which some do not count, 11 classes."""
    rng = np.random.default_rng(2)
    factors = Factors(jnp.float32(rng.normal(size=(17, 5))), jnp.float32(rng.normal(size=(11, 5))))
    return factors, as_int(rng.integers(0, 11, 17)), jnp.asarray(rng.random(17) < 0.7)


@pytest.mark.parametrize("part", [17, 5, 1])
def test_parts_change_nothing(pieces, part, monkeypatch):
    """Sums and gradients, the loss weighed by 3 as a caller might, equal those of all the logits at once."""
    monkeypatch.setattr(losses, "PART", part)
    factors, labels, counts = pieces

    def whole(factors):
        loss = definition(factors.logits(), labels, 0.1)
        return 3 * jnp.sum(loss, where=counts)

    def ours(factors):
        sums = summed_cross_entropy(factors, labels, counts, 0.1)
        return 3 * sums[0], sums

    (value, sums), slope = jax.value_and_grad(ours, has_aux=True)(factors)
    np.testing.assert_allclose(value, whole(factors), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), slope, jax.grad(whole)(factors))
    np.testing.assert_allclose(sums, summed_cross_entropy(factors, labels, counts, 0.1), rtol=1e-6)
    nll = definition(factors.logits(), labels, 0.0)
    np.testing.assert_allclose(sums[1], jnp.sum(nll, where=counts), rtol=1e-5)
    right = factors.logits().argmax(axis=-1) == labels
    assert sums[2] == (right & counts).sum() > 0


def test_all_logits_are_never_held(pieces, monkeypatch):
    monkeypatch.setattr(losses, "PART", 5)
    factors, labels, counts = pieces
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda f: summed_cross_entropy(f, labels, counts, 0.1)[0]))(factors))
    assert "f32[5,11]" in jaxpr
    assert "f32[17,11]" not in jaxpr
