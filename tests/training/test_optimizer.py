"""Equation 3, and Adam as the paper sets it."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import OptimizerConfig
from transformer.training.optimizer import adam, learning_rate, peak_learning_rate


@pytest.mark.parametrize("step", [1, 7, 3_999, 4_000, 4_001, 100_000])
def test_learning_rate_is_equation_3(step):
    paper = 512**-0.5 * min(step**-0.5, step * 4_000**-1.5)
    ours = learning_rate(step, peak_learning_rate(OptimizerConfig(), d_model=512), 4_000)
    assert float(ours) == pytest.approx(paper, rel=1e-6)


def test_a_given_peak_is_reached_at_the_end_of_the_warm_up():
    config = OptimizerConfig(learning_rate=5e-3, warmup_steps=2_000)
    peak = peak_learning_rate(config, d_model=128)
    rates = [float(learning_rate(step, peak, 2_000)) for step in (1_000, 2_000, 8_000)]
    assert rates == pytest.approx([2.5e-3, 5e-3, 2.5e-3])


def test_adam_by_hand():
    """Two steps with gradients 1 and 3, betas and epsilon of the paper."""
    optimizer = adam(OptimizerConfig())
    params = jnp.zeros(())
    state, m, v = optimizer.init(params), 0.0, 0.0
    for step, gradient in enumerate([1.0, 3.0], start=1):
        direction, state = optimizer.update(jnp.float32(gradient), state, params)
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        expected = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.98**step)) + 1e-9)
        assert float(direction) == pytest.approx(expected, rel=1e-5)
