"""An observer of training for tests."""


class Recorder:
    """Stores the records, and asks to stop after step `stop_after`; if None, never asks."""

    def __init__(self, stop_after=None):
        self.stop_after, self.last_step, self.records = stop_after, 0, []

    def step(self, step):
        self.last_step = step

    def record(self, record):
        self.records.append(record)

    def should_stop(self):
        return self.last_step == self.stop_after
