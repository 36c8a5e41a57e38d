"""A study of two tasks, written without training."""

import dataclasses
from pathlib import Path

from experiments.study.sweep import PlannedRun
from tests.support.studies import write_run

SWEEP = '''
"""Does it help everywhere?"""
CONFIGS = {"translation": "configs/number_words.py:smoke", "language": "configs/gpt.py:shakespeare,smoke"}
VARIANTS = {
    "base": {},
    "rope": {"model.positions": "rope"},
    "encoder": {"model.encoder_layers": 2},
    "pre_norm": {"model.residual": "pre_norm"},
}
SPLITS = {"translation": ("test", "test_long"), "language": ("test",)}
METRICS = {"translation": ("chrf", "nll"), "language": ("bits_per_byte",)}
PRIMARY = {"translation": ("chrf", "test"), "language": ("bits_per_byte", "test")}
'''
REASONS = {
    "encoder": "model.encoder_layers has no effect",
    "pre_norm": "its config is that of base",
}
# The score of each variant with the first seed.
LEVELS = {
    ("translation", "base"): 50.0,
    ("translation", "rope"): 50.4,
    ("translation", "encoder"): 53.0,
    ("translation", "pre_norm"): 20.0,
    ("language", "base"): 1.0,
    ("language", "rope"): 4.0,
}


def write_scored(root: Path, run: PlannedRun) -> None:
    """Writes the files of a run that has scores: the level of its variant, and noise."""
    score = LEVELS[run.task, run.variant] + 0.8 * run.seed
    splits = {"translation": ("test", "test_long"), "language": ("test",)}[run.task]
    metrics = {"translation": ("chrf", "nll"), "language": ("bits_per_byte",)}[run.task]
    run_in_task = dataclasses.replace(run, task="")
    validation = {"nll": 1 / run.config.optimizer.learning_rate}
    written = write_run(
        root / run.task,
        run_in_task,
        {split: dict.fromkeys(metrics, score) for split in splits},
        result={"validation": validation},
    )
    (written.folder / "checkpoints").mkdir(exist_ok=True)
