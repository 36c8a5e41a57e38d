"""The label-smoothed loss, compared with values computed by hand and with its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.model.embedding import LogitFactors
from transformer.training import losses
from transformer.training.losses import smoothed_cross_entropy, summed_cross_entropy

# One program is cheaper than a program for each operation.
entropy_of = jax.jit(smoothed_cross_entropy, static_argnames="z_loss")


def test_smoothed_cross_entropy_equals_values_computed_by_hand():
    """Two classes have probabilities 3/4 and 1/4; the second is correct. With eps 0.2, q is (0.1, 0.9)."""
    entropy = entropy_of(np.log(np.float32([[0.75, 0.25]])), np.array([1]), 0.2)
    assert float(entropy.loss[0]) == pytest.approx(-0.1 * np.log(0.75) - 0.9 * np.log(0.25), rel=1e-6)
    assert float(entropy.nll[0]) == pytest.approx(np.log(4), rel=1e-6)
    np.testing.assert_allclose(entropy.gradient, [[0.65, -0.65]], rtol=1e-6)
    assert not entropy.correct[0]


@jax.jit
def definition(logits, labels, epsilon, z_loss=0.0):
    """The loss -sum(q log p) + z_loss log(Z)^2, with the smoothed distribution q and Z written out."""
    classes = logits.shape[-1]
    target = (1 - epsilon) * jax.nn.one_hot(labels, classes) + epsilon / classes
    smoothed = -(target * jax.nn.log_softmax(logits)).sum(axis=-1)
    return smoothed + z_loss * jnp.log(jnp.exp(logits).sum(axis=-1)) ** 2


@jax.jit
def summed_definition(factors, labels, counts, z_loss):
    """The sum of the loss over the tokens that count, times 3, from all logits at once."""
    return 3 * jnp.sum(definition(factors.logits(), labels, 0.1, z_loss), where=counts)


@pytest.mark.parametrize(("epsilon", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.5, 0.0), (0.1, 0.3)])
def test_loss_and_gradient_equal_the_one_hot_definition(epsilon, z_loss):
    rng = np.random.default_rng(0)
    logits, labels = np.float32(3 * rng.normal(size=(7, 11))), rng.integers(0, 11, 7).astype(np.int32)
    entropy = entropy_of(logits, labels, epsilon, z_loss=z_loss)
    np.testing.assert_allclose(entropy.loss, definition(logits, labels, epsilon, z_loss), rtol=1e-5)
    np.testing.assert_allclose(entropy.nll, definition(logits, labels, 0.0), rtol=1e-5, atol=1e-6)
    _, pullback = jax.vjp(lambda z: definition(z, labels, epsilon, z_loss), logits)
    (gradient,) = pullback(np.ones(7, np.float32))
    np.testing.assert_allclose(entropy.gradient, gradient, atol=1e-6)


def test_the_smoothed_loss_is_minimal_at_the_smoothed_distribution():
    target = np.full(5, 0.1 / 5)
    target[2] += 0.9
    entropy = entropy_of(np.log(np.float32(target))[None], np.array([2]), 0.1)
    np.testing.assert_allclose(entropy.gradient, 0, atol=1e-6)


def test_a_prediction_is_correct_if_no_logit_exceeds_the_logit_of_the_label():
    logits = np.float32([[1, 3, 2], [5, 3, 2]])
    entropy = entropy_of(logits, np.array([1, 1]), 0.1)
    np.testing.assert_array_equal(entropy.correct, [True, False])


@pytest.fixture
def tokens():
    """Logit factors, labels and a mask for 17 tokens and 11 classes; the mask leaves out some tokens."""
    rng = np.random.default_rng(2)
    factors = LogitFactors(jnp.float32(rng.normal(size=(17, 5))), jnp.float32(rng.normal(size=(11, 5))))
    return factors, rng.integers(0, 11, 17).astype(np.int32), rng.random(17) < 0.7


@pytest.mark.parametrize(("chunk", "z_loss"), [(17, 0.0), (5, 0.3), (1, 0.0)])
def test_chunks_change_neither_sums_nor_gradients(tokens, chunk, z_loss, monkeypatch):
    """The reference computes all logits at once. The loss is weighted by 3."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    factors, labels, counts = tokens

    @jax.jit
    def chunked(factors):
        sums = summed_cross_entropy(factors, labels, counts, 0.1, z_loss)
        return 3 * sums[0], sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(chunked, has_aux=True))(factors)
    expected_value, expected_gradient = jax.jit(jax.value_and_grad(summed_definition))(
        factors, labels, counts, z_loss
    )
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    # The tolerance is float32 rounding of sums over 17 tokens in a different order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, expected_gradient)
    _, sums_without_gradient = chunked(factors)
    np.testing.assert_allclose(sums, sums_without_gradient, rtol=1e-6)
    logits = np.asarray(factors.vectors) @ np.asarray(factors.table).T
    nll = np.asarray(definition(logits, labels, 0.0))
    np.testing.assert_allclose(sums[1], nll[counts].sum(), rtol=1e-5)
    correct = logits.argmax(axis=-1) == labels
    assert sums[2] == (correct & counts).sum() > 0


def test_the_program_without_z_loss_is_that_of_the_paper(tokens):
    """A coefficient of 0 is not a product with 0, and another coefficient is not ignored."""
    factors, labels, counts = tokens

    def program(*z_loss):
        def loss(factors):
            return summed_cross_entropy(factors, labels, counts, 0.1, *z_loss)[0]

        return str(jax.make_jaxpr(jax.grad(loss))(factors))

    assert program(0.0) == program()
    assert program(1e-4) != program()


def test_only_one_chunk_of_logits_is_in_memory(tokens, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 5)
    factors, labels, counts = tokens
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda f: summed_cross_entropy(f, labels, counts, 0.1)[0]))(factors))
    assert "f32[5,11]" in jaxpr
    assert "f32[17,11]" not in jaxpr
