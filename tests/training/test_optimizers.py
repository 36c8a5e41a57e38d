"""Learning-rate schedules and optimizers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.toy import Regression, toy_config
from transformer.config import ExperimentConfig, ModelConfig, OptimizerConfig, TrainConfig, UserError
from transformer.training.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from transformer.training.parallelism import Single
from transformer.training.train_step import init_state, make_train_step
from transformer.training.trainable import Hyperparameters


def rates(steps, peak, num_steps=100, **options):
    """The learning rates of the given steps, counted from 1."""
    schedule = make_schedule(OptimizerConfig(**options), peak, num_steps)
    return jax.jit(jax.vmap(schedule))(np.array(steps, np.int32) - 1).tolist()


def test_paper_schedule_is_equation_3():
    steps = [1, 7, 3_999, 4_000, 4_001, 100_000]
    equation = [512**-0.5 * min(step**-0.5, step * 4_000**-1.5) for step in steps]
    peak = Hyperparameters.from_config(ExperimentConfig()).learning_rate
    assert rates(steps, peak) == pytest.approx(equation, rel=1e-6)


def test_a_configured_peak_is_reached_at_the_end_of_the_warmup():
    config = ExperimentConfig(
        model=ModelConfig(d_model=128), optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=2_000)
    )
    peak = Hyperparameters.from_config(config).learning_rate
    assert rates([1_000, 2_000, 8_000], peak, warmup_steps=2_000) == pytest.approx([2.5e-3, 5e-3, 2.5e-3])


def test_constant_schedule_warms_up_and_stays():
    actual = rates([1, 5, 10, 11, 100], 0.5, schedule="constant", warmup_steps=10)
    assert actual == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.5])


def test_cosine_schedule_warms_up_and_falls_along_a_cosine():
    steps = np.array([5, 10, 11, 60, 100])
    actual = rates(steps, 0.5, schedule="cosine", warmup_steps=10)
    cosine = 0.25 * (1 + np.cos(np.pi * (steps - 10) / 91))
    assert actual == pytest.approx([0.25, *cosine[1:]], abs=1e-7)  # float32 cosine
    assert 0 < actual[-1] < 1e-3
    above = rates([10, 60, 100], 0.5, schedule="cosine", warmup_steps=10, final_fraction=0.1)
    assert above == pytest.approx([0.5, *(0.05 + 0.9 * cosine[3:])], abs=1e-7)


def test_wsd_schedule_is_stable_and_then_falls_linearly():
    actual = rates([5, 10, 80, 81, 91, 100], 1.0, schedule="wsd", warmup_steps=10, decay_steps=20)
    assert actual == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.05])
    tenth = rates([90, 91, 96], 1.0, schedule="wsd", warmup_steps=10)
    assert tenth == pytest.approx([1.0, 1.0, 0.5])
    above = rates([80, 91, 100], 1.0, schedule="wsd", warmup_steps=10, decay_steps=20, final_fraction=0.5)
    assert above == pytest.approx([1.0, 0.75, 0.525])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_is_positive_from_the_first_update_on_and_largest_at_the_peak(name):
    actual = rates(range(1, 101), 0.3, schedule=name, warmup_steps=10)
    assert actual[0] == pytest.approx(0.03)
    assert max(actual) == pytest.approx(0.3)
    assert min(actual) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": "linear"},
            "optimizer.schedule is 'linear'; it must be one of: constant, cosine, paper, wsd",
        ),
        ({"name": "lion"}, "optimizer.name is 'lion'; it must be one of: adam, adamw, muon, sgd"),
        (
            {"schedule": "cosine", "warmup_steps": 21},
            "optimizer.warmup_steps is 21; it must be at most train.steps",
        ),
        ({"schedule": "wsd", "warmup_steps": 19}, "decay_steps is 21; it must be at most train.steps"),
    ],
)
def test_unusable_options_are_refused(options, message):
    config = ExperimentConfig(optimizer=OptimizerConfig(**options), train=TrainConfig(steps=20))
    with pytest.raises(UserError, match=message):
        init_state({"kernel": jnp.ones((2, 2))}, config)


def apply(optimizer, gradients, params):
    """Parameters after one update for each gradient."""

    @jax.jit
    def updated(gradients, params):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return updated(gradients, params)


def test_adam_equals_a_computation_by_hand():
    """Adam takes two steps with gradients 1 and 3, and with the betas and epsilon of the paper."""
    expected, m, v = 0.0, 0.0, 0.0
    for step, gradient in enumerate([1.0, 3.0], start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        expected -= 0.5 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.98**step)) + 1e-9)
    optimizer = make_optimizer(OptimizerConfig(), lambda count: 0.5)
    actual = apply(optimizer, [jnp.float32(1), jnp.float32(3)], jnp.float32(0))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_adamw_decays_matrices_but_not_vectors():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(OptimizerConfig(name="adamw", weight_decay=0.1), lambda count: 0.5)
    actual = apply(optimizer, [zeros], params)
    np.testing.assert_allclose(actual["kernel"], 0.95)
    np.testing.assert_array_equal(actual["bias"], 1)


def test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam():
    params = {
        "embedding": {"table": jnp.zeros((5, 4))},
        "dense": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)},
    }
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), params)
    actual = apply(make_optimizer(OptimizerConfig(name="muon"), lambda count: 1.0), [gradients], params)
    # Newton-Schulz brings singular values near 1.
    singular_values = np.linalg.svd(actual["dense"]["kernel"], compute_uv=False)
    assert singular_values.min() > 0.4
    assert singular_values.max() < 1.4
    # The first update of Adam is the sign of the gradient; Nesterov momentum adds beta1 / (1 + beta1) of it.
    for ours, gradient in (
        (actual["embedding"]["table"], gradients["embedding"]["table"]),
        (actual["dense"]["bias"], gradients["dense"]["bias"]),
    ):
        np.testing.assert_allclose(ours, -(1 + 0.9 / 1.9) * np.sign(gradient), rtol=1e-4)


def test_sgd_has_momentum_beta1():
    optimizer = make_optimizer(OptimizerConfig(name="sgd", beta1=0.5), lambda count: 0.1)
    actual = apply(optimizer, [jnp.float32(1), jnp.float32(1)], jnp.float32(0))
    assert float(actual) == pytest.approx(-0.1 * (1 + 1.5))


def test_clip_norm_bounds_the_gradient_of_the_mean_loss():
    optimizer = make_optimizer(OptimizerConfig(name="sgd", clip_norm=1.0), lambda count: 1.0)
    actual = apply(optimizer, [jnp.float32([3, 4])], jnp.zeros(2))
    np.testing.assert_allclose(actual, [-0.6, -0.8], rtol=1e-6)


@pytest.fixture
def task():
    return Regression(toy_config())


def train_toy(task, config, num_steps=60, learning_rates=(0.1,)):
    """The losses of some updates on the toy task, and the number of times that the step was traced."""
    parallelism, traces = Single(), []

    def counting_loss(*arguments):
        traces.append(1)
        return task.loss(*arguments)

    step = make_train_step(counting_loss, config, parallelism)
    state, losses = init_state(task.init(0), config), []
    for number in range(num_steps):
        rate = learning_rates[number % len(learning_rates)]
        batch = parallelism.shard(task.batch(np.arange(40)))
        state, totals, _ = step(state, batch, jax.random.key(0), Hyperparameters(rate, 0.0, 0.0))
        losses.append(float(totals["loss"]))
    return losses, len(traces)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [*((name, "paper") for name in OPTIMIZERS), *(("adam", name) for name in SCHEDULES if name != "paper")],
)
def test_every_optimizer_and_schedule_learns_and_rates_change_without_recompilation(task, name, schedule):
    options = OptimizerConfig(name=name, schedule=schedule, warmup_steps=5, clip_norm=10.0)
    config = dataclasses.replace(toy_config(steps=60), optimizer=options)
    losses, traces = train_toy(task, config, learning_rates=(0.1, 0.05))
    assert losses[-1] < 0.2 * losses[0]
    assert traces == 1


def test_any_optax_transformation_works_unchanged(task, monkeypatch):
    """The test adds an optimizer and a schedule, each as one registry entry."""
    monkeypatch.setitem(
        OPTIMIZERS,
        "mine",
        lambda config, rate: optax.chain(optax.clip(1.0), optax.lion(rate, weight_decay=1e-4)),
    )
    monkeypatch.setitem(
        SCHEDULES, "mine", lambda config, peak, num_steps: lambda count: peak / (1 + 0.01 * count)
    )
    options = OptimizerConfig(name="mine", schedule="mine")
    config = dataclasses.replace(toy_config(steps=60), optimizer=options)
    losses, _ = train_toy(task, config)
    assert losses[-1] < 0.5 * losses[0]
