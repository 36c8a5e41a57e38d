"""The content of a checkpoint is restored exactly as it was saved, on any devices, or refused."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support.checkpoints import IDENTITY, save_states, state_at, truncate
from tests.support.toy import toy_config
from transformer.config import UserError
from transformer.training.checkpoint_files import DamagedCheckpoint, check_space
from transformer.training.checkpoints import Checkpoints
from transformer.training.optimizers import OPTIMIZERS
from transformer.training.parallelism import Mesh, Single, put
from transformer.training.train_step import TrainState, init_state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_every_optimizer_is_restored_as_saved(tmp_path, optimizer):
    checkpoints = Checkpoints(tmp_path, keep_last=10)
    checkpoints.save(state_at(10, optimizer), {**IDENTITY, "tokens_seen": 1}, 2.0)
    checkpoints.save(state_at(20, optimizer), {**IDENTITY, "tokens_seen": 2}, 1.0)
    checkpoints.close()
    restored, metadata = Checkpoints(tmp_path, keep_last=10).restore(state_at(0, optimizer))
    expected = state_at(20, optimizer)
    assert isinstance(restored, TrainState)
    assert metadata["tokens_seen"] == 2
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    params, _ = Checkpoints(tmp_path).params(10, expected.params)
    jax.tree.map(np.testing.assert_array_equal, params, state_at(10).params)


@pytest.mark.parametrize("item", ["params", "opt_state"])
def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path, item):
    """Orbax restores most flipped bits of a large array without an error. The digests reveal them."""
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(200, 100)).astype(np.float32)}
    large = TrainState(np.int32(10), weights, weights)
    writer = Checkpoints(tmp_path, keep_last=1)
    writer.save(large, IDENTITY, 1.0)
    writer.close()
    files = (path for path in (tmp_path / "10" / item).rglob("*") if path.is_file())
    path = max(files, key=lambda path: path.stat().st_size)
    intact, messages = path.read_bytes(), []
    assert len(intact) > 40_000
    for place in rng.integers(0, len(intact), 12):
        data = bytearray(intact)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            Checkpoints(tmp_path).restore(large)
        messages.append(str(error.value))
    assert any(f"is damaged: {item}" in message for message in messages)
    path.write_bytes(intact)
    Checkpoints(tmp_path).restore(large)


def test_a_checkpoint_without_space_is_refused(tmp_path, monkeypatch):
    items = {"a": np.zeros(300_000, np.float32)}
    check_space(tmp_path, items)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_100_000))
    with pytest.raises(UserError, match=r"1.1 MB are free, but a checkpoint needs 1.2 MB; free some space"):
        check_space(tmp_path, items)


SPLITS = {
    "one device": lambda: Single(),
    "fsdp": lambda: Mesh(fsdp=8),
    "four devices": lambda: Mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]),
}


@pytest.mark.parametrize("saved", SPLITS)
@pytest.mark.parametrize("restored", SPLITS)
def test_a_state_is_restored_on_other_devices(tmp_path, saved, restored):
    params = {"query": {"kernel": np.float32(np.arange(128).reshape(16, 8))}, "scale": np.ones(8, np.float32)}
    state = init_state(params, toy_config())._replace(step=np.int32(10))
    on_devices = put(SPLITS[saved](), state)
    checkpoints = Checkpoints(tmp_path, keep_last=10)
    checkpoints.save(on_devices, IDENTITY, 1.0)
    checkpoints.close()
    template = put(SPLITS[restored](), jax.tree.map(np.zeros_like, state))

    result, _ = Checkpoints(tmp_path, keep_last=10).restore(template)

    jax.tree.map(np.testing.assert_array_equal, result, state)
    if restored != "one device":
        for tree in (result.params, result.opt_state[0].mu):
            assert tree["query"]["kernel"].sharding == template.params["query"]["kernel"].sharding
    assert Checkpoints(tmp_path).verify(10)["step"] == 10


def test_a_split_array_is_written_in_parts(tmp_path):
    """Each part of the kernel is a chunk of its own, so the kernel is never whole in memory."""
    kernel = np.float32(np.arange(128).reshape(16, 8))
    state = init_state({"query": {"kernel": kernel}}, toy_config())._replace(step=np.int32(10))
    checkpoints = Checkpoints(tmp_path, keep_last=10)
    checkpoints.save(put(Mesh(fsdp=8), state), IDENTITY, 1.0)
    checkpoints.close()
    stored = ocp.StandardCheckpointHandler().metadata(tmp_path / "10" / "params").tree
    assert stored["query"]["kernel"].storage.chunk_shape == (2, 8)


def test_verification_reads_every_array(tmp_path):
    save_states(tmp_path, [1.0])
    assert Checkpoints(tmp_path).verify(10)["tokens_seen"] == 1
    for item in ("params", "opt_state"):
        truncate(tmp_path / "10" / item)
        with pytest.raises(DamagedCheckpoint, match=r"/10 is "):
            Checkpoints(tmp_path).verify(10)
        shutil.rmtree(tmp_path / "10")
        save_states(tmp_path, [1.0])


def test_weights_of_a_different_shape_are_refused(tmp_path):
    save_states(tmp_path, [1.0])
    template = {"a": {"kernel": np.zeros((3, 4), np.float32)}, "b": np.zeros(7, np.float32)}
    with pytest.raises(
        UserError, match="checkpoint .*10 does not fit the model of config.json: the shapes of params differ"
    ):
        Checkpoints(tmp_path).params(10, template)


def test_a_different_optimizer_cannot_read_the_state(tmp_path):
    save_states(tmp_path, [1.0])
    with pytest.raises(UserError, match=r"checkpoint .*10 (is unreadable|does not fit the model)"):
        Checkpoints(tmp_path).restore(state_at(0, "sgd"))
