"""A run keeps its last and best checkpoints, and resumes from the newest intact one."""

import shutil

import jax
import numpy as np
import pytest

from tests.support.checkpoints import IDENTITY, save_states, state_at, truncate
from transformer.training import checkpoint_files
from transformer.training.checkpoint_files import DamagedCheckpoint
from transformer.training.checkpoints import Checkpoints


def test_a_new_folder_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path, keep_last=10).restore(state_at(0)) is None


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    save_states(tmp_path, [3.0, 1.0, 2.0, 2.5, 2.7], keep_last=2)
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.steps == [20, 40, 50]
    checkpoints.save(state_at(60), IDENTITY, 2.6)
    checkpoints.close()
    assert Checkpoints(tmp_path).steps == [20, 50, 60]


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


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def lose_metadata(folder):
    shutil.rmtree(folder / "metadata")


@pytest.mark.parametrize("damage", [truncate, empty, lose_metadata])
def test_only_the_damaged_checkpoints_are_lost(tmp_path, caplog, damage):
    save_states(tmp_path, [3.0, 2.0, 1.0])
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
    save_states(tmp_path, [1.0])
    (tmp_path / "20").touch()
    checkpoints = Checkpoints(tmp_path, keep_last=10)
    assert checkpoints.restore(state_at(0))[0].step == 10
    checkpoints.save(state_at(20), IDENTITY, 0.5)
    checkpoints.close()
    assert Checkpoints(tmp_path).verify(20)["step"] == 20


def test_a_run_without_an_intact_checkpoint_is_refused_and_keeps_its_files(tmp_path):
    save_states(tmp_path, [3.0, 2.0])
    for step in (10, 20):
        truncate(tmp_path / str(step))
    with pytest.raises(
        DamagedCheckpoint, match=r"/20 is unreadable: .*; no other checkpoint is intact; restore one"
    ):
        Checkpoints(tmp_path, keep_last=10).restore(state_at(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_a_checkpoint_that_another_process_cannot_read_is_not_restored(tmp_path, monkeypatch):
    """Otherwise the processes would train from different steps."""
    save_states(tmp_path, [1.0, 0.9])
    reader = Checkpoints(tmp_path, keep_last=10)
    others_can_read = iter([False, True])
    monkeypatch.setattr(checkpoint_files, "all_true", lambda value: next(others_can_read) and value)
    state, _ = reader.restore(state_at(0))
    assert state.step == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20.damaged"]
