"""Label smoothing, checked by hand and against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import as_int
from transformer.training.losses import smoothed_cross_entropy


def test_by_hand():
    """Two classes with probabilities 3/4 and 1/4, the second one right, eps 0.2: q is (0.1, 0.9)."""
    logits = jnp.log(jnp.array([[[0.75, 0.25]]]))
    loss, nll, correct = smoothed_cross_entropy(logits, as_int([[1]]), 0.2)
    assert float(loss[0, 0]) == pytest.approx(-0.1 * np.log(0.75) - 0.9 * np.log(0.25), rel=1e-6)
    assert float(nll[0, 0]) == pytest.approx(np.log(4), rel=1e-6)
    assert not correct[0, 0]


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_equals_the_one_hot_definition_gradients_included(epsilon):
    rng = np.random.default_rng(0)
    logits, labels = jnp.float32(3 * rng.normal(size=(2, 3, 11))), as_int(rng.integers(0, 11, (2, 3)))

    def ours(logits):
        return smoothed_cross_entropy(logits, labels, epsilon)[0]

    def definition(logits):
        target = (1 - epsilon) * jax.nn.one_hot(labels, 11) + epsilon / 11
        return -(target * jax.nn.log_softmax(logits)).sum(axis=-1)

    np.testing.assert_allclose(ours(logits), definition(logits), rtol=1e-5)
    gradients = [jax.grad(lambda z, f=f: f(z).sum())(logits) for f in (ours, definition)]
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_the_smoothed_loss_is_least_at_the_smoothed_distribution():
    target = np.full(5, 0.1 / 5)
    target[2] += 0.9
    gradient = jax.grad(lambda z: smoothed_cross_entropy(z[None, None], as_int([[2]]), 0.1)[0].sum())
    np.testing.assert_allclose(gradient(jnp.log(jnp.float32(target))), 0, atol=1e-6)


def test_correct():
    logits = jnp.array([[[1.0, 3.0, 2.0], [5.0, 3.0, 2.0]]])
    np.testing.assert_array_equal(smoothed_cross_entropy(logits, as_int([[1, 1]]), 0.1)[2], [[True, False]])
