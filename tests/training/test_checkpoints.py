"""Checkpoints come back as they were, or not at all."""

import jax
import numpy as np
import pytest

from transformer.config import OptimizerConfig, UserError
from transformer.training.checkpoints import Checkpoints, average, digest
from transformer.training.optimizer import adam
from transformer.training.step import TrainState, initial_state


def state(step):
    params = {"a": {"kernel": np.full((3, 5), float(step), np.float32)}, "b": np.arange(7, dtype=np.float32)}
    return initial_state(params, adam(OptimizerConfig()))._replace(step=np.int32(step))


def save(folder, losses, keep_last=10):
    checkpoints = Checkpoints(folder, keep_last)
    for number, loss in enumerate(losses, start=1):
        checkpoints.save(state(number * 10), {"tokens_seen": number}, loss)
    checkpoints.close()


def test_round_trip(tmp_path):
    save(tmp_path, [2.0, 1.0])
    restored, facts = Checkpoints(tmp_path, keep_last=10).restore(state(0))
    assert isinstance(restored, TrainState)
    assert facts["tokens_seen"] == 2
    expected = state(20)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    params, _ = Checkpoints(tmp_path).params(10, state(0).params)
    jax.tree.map(np.testing.assert_array_equal, params, state(10).params)


def test_none_yet(tmp_path):
    assert Checkpoints(tmp_path, keep_last=10).restore(state(0)) is None


def test_keeps_the_last_and_the_best(tmp_path):
    save(tmp_path, [3.0, 1.0, 2.0, 2.5, 2.7], keep_last=2)
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.steps == [20, 40, 50]
    assert checkpoints.best == 20


def test_reading_does_not_disturb_a_save_under_way(tmp_path):
    writer = Checkpoints(tmp_path, keep_last=10)
    large = state(10)._replace(params={"a": {"kernel": np.ones((2_000, 2_000), np.float32)}})
    writer.save(large, {}, 1.0)
    reader = Checkpoints(tmp_path)
    assert reader.steps in ([], [10])
    reader.close()
    writer.close()
    assert Checkpoints(tmp_path).steps == [10]


def test_what_an_interruption_left_goes_with_the_next_validation(tmp_path):
    """So that an interrupted run keeps the same checkpoints as one that was not."""
    writer = Checkpoints(tmp_path, keep_last=3)
    for step, loss in ((10, 3.0), (13, None), (20, 2.0), (25, None), (30, 1.0)):
        writer.save(state(step), {}, loss)
        if loss is None:
            assert writer.steps[-1] == step
    writer.close()
    assert Checkpoints(tmp_path).steps == [10, 20, 30]


def test_a_flipped_bit_is_noticed(tmp_path):
    """Orbax restores most flips in a large array without a word; our digest does not."""
    rng = np.random.default_rng(0)
    large = state(10)._replace(params={"kernel": rng.normal(size=(200, 100)).astype(np.float32)})
    writer = Checkpoints(tmp_path, keep_last=1)
    writer.save(large, {}, 1.0)
    writer.close()
    files = (path for path in (tmp_path / "10" / "params").rglob("*") if path.is_file())
    path = max(files, key=lambda path: path.stat().st_size)
    whole, messages = path.read_bytes(), []
    assert len(whole) > 40_000
    for place in rng.integers(0, len(whole), 12):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            Checkpoints(tmp_path).params(10, large.params)
        messages.append(str(error.value))
    assert any("is damaged: params" in message for message in messages)
    path.write_bytes(whole)
    Checkpoints(tmp_path).params(10, large.params)


def test_another_shape_is_refused(tmp_path):
    save(tmp_path, [1.0])
    template = {"a": {"kernel": np.zeros((3, 4), np.float32)}, "b": np.zeros(7, np.float32)}
    with pytest.raises(UserError, match="checkpoint .*10 has other shapes: params"):
        Checkpoints(tmp_path).params(10, template)


def test_digest_sees_names_shapes_dtypes_and_values():
    trees = [
        {"a": np.zeros((2, 3), np.float32)},
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.array([[0, 0, 0], [0, 0, 1]], np.float32)},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest(trees[0]) == digest(jax.tree.map(jax.numpy.asarray, trees[0]))


def test_average():
    mean = average([state(10).params, state(20).params, state(60).params])
    np.testing.assert_array_equal(mean["a"]["kernel"], np.full((3, 5), 30, np.float32))
    np.testing.assert_array_equal(mean["b"], state(0).params["b"])
    assert mean["b"].dtype == np.float32
