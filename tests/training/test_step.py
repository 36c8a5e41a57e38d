"""An update does not depend on how the batch was cut or packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import VOCAB, tiny_config
from transformer.config import OptimizerConfig, UserError
from transformer.data.corpus import Side, Split
from transformer.data.pipeline import assemble
from transformer.model import build, init_params
from transformer.training import placement as placements
from transformer.training.losses import Hyper, make_loss_fn
from transformer.training.optimizer import adam
from transformer.training.step import initial_state, make_train_step, make_validation_step

HYPER = Hyper(learning_rate=0.1, dropout_rate=0.3, label_smoothing=0.1)
KEY = jax.random.key(7)


def sentences(rng, count):
    lengths = rng.integers(2, 6, count)
    pieces = np.concatenate([[*rng.integers(4, VOCAB, length - 1), 2] for length in lengths])
    return Side(pieces, np.cumsum([0, *lengths]))


@pytest.fixture(scope="module")
def split():
    """21 pairs of 2 to 5 pieces a side."""
    rng = np.random.default_rng(0)
    return Split(sentences(rng, 21), sentences(rng, 21), np.arange(1, 22))


@pytest.fixture
def packed(split):
    """Seven rows of three pairs."""
    return assemble(split, list(np.arange(21).reshape(7, 3)), 7, 15, 15)


def devices(count):
    """pmap over the first virtual devices."""
    return placements.Pmap(jax.devices()[:count])


def update(placement, batch, accumulation=1, steps=2, **changes):
    """The state and sums after a few updates on one batch."""
    model = build(tiny_config(**changes), VOCAB)
    optimizer = adam(OptimizerConfig(warmup_steps=2))
    state = placement.replicate(initial_state(init_params(model, seed=0), optimizer))
    step = make_train_step(make_loss_fn(model), optimizer, 2, placement, accumulation)
    for _ in range(steps):
        state, sums, info = step(state, placement.shard(batch, accumulation), KEY, HYPER)
    return state, sums, info


def assert_close(ours, theirs):
    """Sums in another order: float32 rounding, grown by two Adam steps of size 0.1 on near-zero gradients."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def reference(split):
    return update(placements.Jit(), assemble(split, list(np.arange(21).reshape(7, 3)), 7, 15, 15))


@pytest.mark.parametrize(
    ("placement", "accumulation"),
    [
        (placements.Jit(), 2),
        (placements.Jit(), 7),
        (devices(1), 1),
        (devices(2), 2),
        (devices(8), 1),
    ],
    ids=["accumulate-2", "accumulate-7", "pmap-1", "pmap-2-accumulate-2", "pmap-8"],
)
def test_devices_and_accumulation_change_nothing(packed, reference, placement, accumulation):
    assert_close(update(placement, packed, accumulation), reference)


def test_packing_changes_nothing(split, reference):
    apart = assemble(split, list(np.arange(21)[:, None]), 21, 5, 5)
    assert_close(update(placements.Jit(), apart), reference)


def test_dropout_is_on_and_changes_from_step_to_step(packed, reference):
    model = build(tiny_config(), VOCAB)
    loss_fn, params = make_loss_fn(model), init_params(model, seed=0)
    batch = placements.Jit().shard(packed)
    losses = [float(loss_fn(params, batch, key, HYPER)[0]) for key in (None, KEY, jax.random.fold_in(KEY, 1))]
    assert len(set(losses)) == 3


def test_sums_count_pieces_and_characters(split, packed, reference):
    _, sums, _ = reference
    assert sums.tokens == split.target.lengths.sum()
    assert sums.source_tokens == split.source.lengths.sum()
    assert sums.characters == split.characters.sum()
    assert 0 <= sums.correct <= sums.tokens


def test_validation_is_the_same_on_all_devices(split, packed):
    model = build(tiny_config(), VOCAB)
    params = init_params(model, seed=0)
    results = []
    for placement in (placements.Jit(), placements.Pmap()):
        validate = make_validation_step(make_loss_fn(model), placement)
        results.append(validate(params, placement.shard(packed), HYPER))
    assert_close(*results)


@pytest.mark.parametrize("placement", [placements.Jit(), placements.Pmap()], ids=["jit", "pmap"])
def test_a_state_comes_back_in_the_form_in_which_it_goes_in(packed, placement):
    """Or else the second step would be compiled anew."""

    def step(state, batch):
        return placement.reduce(state + batch.characters.sum())

    state = placement.replicate(np.float32(1))
    assert placement.compile(step)(state, placement.shard(packed)).sharding == state.sharding


def test_hyper_changes_without_recompilation(packed):
    model = build(tiny_config(), VOCAB)
    optimizer = adam(OptimizerConfig())
    step = make_train_step(make_loss_fn(model), optimizer, 2, placements.Jit())
    state = initial_state(init_params(model, seed=0), optimizer)
    for hyper in (HYPER, Hyper(0.2, 0.0, 0.3)):
        state, *_ = step(state, placements.Jit().shard(packed), KEY, hyper)
    assert step._cache_size() == 1


def test_an_empty_batch_changes_no_weight_to_nan(packed):
    empty = jax.tree.map(np.zeros_like, packed)
    state, sums, _ = update(placements.Jit(), empty, steps=1)
    assert sums.tokens == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_bfloat16_keeps_weights_and_sums_in_float32(packed):
    state, sums, _ = update(placements.Jit(), packed, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves((state.params, sums))} == {jnp.dtype("float32")}


def test_unknown_placement_is_refused():
    with pytest.raises(UserError, match="train.placement is 'x'; it must be one of: auto, jit, pmap"):
        placements.place("x")
    assert isinstance(placements.place("auto"), placements.Pmap)
