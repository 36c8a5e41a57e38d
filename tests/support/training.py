"""Trains a run in the test's process."""

from tests.support.observers import Recorder
from transformer.tasks import open_task, resolve
from transformer.training.checkpoints import read_identity
from transformer.training.loop import train


def run_or_resume(config, folder, stop_after=None):
    """Trains in a folder, until step `stop_after` if it is given, and returns the outcome."""
    folder.mkdir(exist_ok=True)
    recorder = Recorder(stop_after)
    task = open_task(resolve(config), folder, stored=read_identity(folder / "checkpoints"))
    return train(config, task, folder, recorder, recorder.should_stop)
