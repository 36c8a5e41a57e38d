"""Checkpoints are restored exactly as they were saved, or refused."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support.toy import toy_config
from transformer.config import OptimizerConfig, UserError
from transformer.training import checkpoints as checkpoints_module
from transformer.training.checkpoints import Checkpoints, DamagedCheckpoint, average, check_space
from transformer.training.optimizers import OPTIMIZERS
from transformer.training.parallelism import Mesh, Single, put
from transformer.training.train_step import TrainState, init_state

IDENTITY = {"identity": {"config": "a", "data": "b"}}  # every checkpoint has these metadata


def state_at(step, optimizer="adam"):
    """A state whose weights and optimizer state are functions of the step."""
    params = {"a": {"kernel": np.full((3, 5), step, np.float32)}, "b": np.arange(7, dtype=np.float32)}
    config = dataclasses.replace(toy_config(), optimizer=OptimizerConfig(name=optimizer, clip_norm=1.0))
    state = init_state(params, config)
    opt_state = jax.tree.map(lambda x: x + np.asarray(step, x.dtype), state.opt_state)
    return state._replace(step=np.int32(step), opt_state=opt_state)


def save(folder, criteria, keep_last=10):
    checkpoints = Checkpoints(folder, keep_last)
    for number, criterion in enumerate(criteria, start=1):
        checkpoints.save(state_at(number * 10), {**IDENTITY, "tokens_seen": number}, criterion)
    checkpoints.close()


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


def test_a_new_folder_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path, keep_last=10).restore(state_at(0)) is None


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    save(tmp_path, [3.0, 1.0, 2.0, 2.5, 2.7], keep_last=2)
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.steps == [20, 40, 50]
    assert checkpoints.best == 20


def test_reading_does_not_disturb_a_save_in_progress(tmp_path):
    writer = Checkpoints(tmp_path, keep_last=10)
    large = state_at(10)._replace(params={"a": {"kernel": np.ones((2_000, 2_000), np.float32)}})
    writer.save(large, IDENTITY, 1.0)
    reader = Checkpoints(tmp_path)
    assert reader.steps in ([], [10])
    reader.close()
    writer.close()
    assert Checkpoints(tmp_path).steps == [10]


def test_interruptions_do_not_displace_scored_checkpoints(tmp_path):
    """Interruptions between two validations do not change which scored checkpoints are kept."""
    writer = Checkpoints(tmp_path, keep_last=3)
    for step, criterion in ((5, 4.0), (10, 3.0), (15, 2.0), (16, None), (17, None), (18, None), (20, 1.0)):
        writer.save(state_at(step), IDENTITY, criterion)
    writer.close()
    assert Checkpoints(tmp_path).steps == [10, 15, 20]


def test_the_next_validation_removes_a_checkpoint_saved_on_interruption(tmp_path):
    """An interrupted run keeps the same checkpoints as an uninterrupted run."""
    writer = Checkpoints(tmp_path, keep_last=3)
    for step, criterion in ((10, 3.0), (13, None), (20, 2.0), (25, None), (30, 1.0)):
        writer.save(state_at(step), IDENTITY, criterion)
        if criterion is None:
            assert writer.steps[-1] == step
    writer.close()
    assert Checkpoints(tmp_path).steps == [10, 20, 30]


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


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def lose_metadata(folder):
    shutil.rmtree(folder / "metadata")


@pytest.mark.parametrize("damage", [truncate, empty, lose_metadata])
def test_only_the_damaged_checkpoints_are_lost(tmp_path, caplog, damage):
    save(tmp_path, [3.0, 2.0, 1.0])
    for step in (20, 30):
        damage(tmp_path / str(step))
    (tmp_path / "notes").mkdir()
    checkpoints = Checkpoints(tmp_path, keep_last=10)
    restored, metadata = checkpoints.restore(state_at(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(10))
    assert metadata["tokens_seen"] == 1
    warnings = [record.message for record in caplog.records if record.name.startswith("transformer")]
    for step, warning in zip((30, 20), warnings, strict=True):
        assert warning.startswith(f"warning: checkpoint {tmp_path}/{step} is unreadable: ")
        assert warning.endswith("; resuming from step 10")
    assert checkpoints.steps == [10]
    checkpoints.save(state_at(30), IDENTITY, 0.5)
    checkpoints.close()
    assert Checkpoints(tmp_path).steps == [10, 30]
    assert Checkpoints(tmp_path).verify(30)["step"] == 30
    assert (tmp_path / "30.damaged").exists()


def test_a_file_with_the_name_of_a_step_is_replaced(tmp_path):
    save(tmp_path, [1.0])
    (tmp_path / "20").touch()
    checkpoints = Checkpoints(tmp_path, keep_last=10)
    assert checkpoints.restore(state_at(0))[0].step == 10
    checkpoints.save(state_at(20), IDENTITY, 0.5)
    checkpoints.close()
    assert Checkpoints(tmp_path).verify(20)["step"] == 20


def test_a_run_without_an_intact_checkpoint_is_refused_and_keeps_its_files(tmp_path):
    save(tmp_path, [3.0, 2.0])
    for step in (10, 20):
        truncate(tmp_path / str(step))
    with pytest.raises(
        DamagedCheckpoint, match=r"/20 is unreadable: .*; no other checkpoint is intact; restore one"
    ):
        Checkpoints(tmp_path, keep_last=10).restore(state_at(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_a_checkpoint_that_another_process_cannot_read_is_not_restored(tmp_path, monkeypatch):
    """Otherwise the processes would train from different steps."""
    save(tmp_path, [1.0, 0.9])
    reader = Checkpoints(tmp_path, keep_last=10)
    others_can_read = iter([False, True])
    monkeypatch.setattr(checkpoints_module, "all_true", lambda value: next(others_can_read) and value)
    state, _ = reader.restore(state_at(0))
    assert state.step == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20.damaged"]


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
    save(tmp_path, [1.0])
    assert Checkpoints(tmp_path).verify(10)["tokens_seen"] == 1
    for item in ("params", "opt_state"):
        truncate(tmp_path / "10" / item)
        with pytest.raises(DamagedCheckpoint, match=r"/10 is "):
            Checkpoints(tmp_path).verify(10)
        shutil.rmtree(tmp_path / "10")
        save(tmp_path, [1.0])


def test_weights_of_a_different_shape_are_refused(tmp_path):
    save(tmp_path, [1.0])
    template = {"a": {"kernel": np.zeros((3, 4), np.float32)}, "b": np.zeros(7, np.float32)}
    with pytest.raises(
        UserError, match="checkpoint .*10 does not fit the model of config.json: the shapes of params differ"
    ):
        Checkpoints(tmp_path).params(10, template)


def test_a_different_optimizer_cannot_read_the_state(tmp_path):
    save(tmp_path, [1.0])
    with pytest.raises(UserError, match=r"checkpoint .*10 (is unreadable|does not fit the model)"):
        Checkpoints(tmp_path).restore(state_at(0, "sgd"))


def test_average_is_the_mean_of_the_weights():
    mean = average([state_at(10).params, state_at(20).params, state_at(60).params])
    np.testing.assert_array_equal(mean["a"]["kernel"], np.full((3, 5), 30, np.float32))
    np.testing.assert_array_equal(mean["b"], state_at(0).params["b"])
    assert mean["b"].dtype == np.float32
