"""Measures the time to prepare a text, and the time from the start of training to the first batches.

    python -m tests.data.synthesise /tmp/large 4500000
    python -m tests.data.measure /tmp/large

Reads train.en, train.de, valid.en and valid.de in the folder, and prepares them in its subfolder `data`, which
must not exist. Prints one line per stage, with the seconds and the peak memory of each process.
"""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "configs/text.py"
VOCAB_SIZE, ROW_LENGTH, BATCH_TOKENS = 37_000, 256, 25_000


def changes(folder: Path) -> dict[str, str | int]:
    """The values that differ from configs/text.py, by config key."""
    texts = {
        split: f"{folder / name}.en,{folder / name}.de"
        for split, name in (("train", "train"), ("validation", "valid"))
    }
    return {
        "data.vocab_size": VOCAB_SIZE,
        "data.data_dir": str(folder / "data"),
        "data.row_length": ROW_LENGTH,
        **{f"data.options.{split}": text for split, text in texts.items()},
    }


def prepare(folder: Path) -> tuple[float, float, str]:
    """Runs `experiments.prepare`; returns its seconds, its peak memory in MB, and its output."""
    command = [sys.executable, "-m", "experiments.prepare", f"--config={CONFIG}"]
    began = time.perf_counter()
    done = subprocess.run(
        command + [f"--config.{key}={value}" for key, value in changes(folder).items()],
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seconds = time.perf_counter() - began
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, done.stdout


class Stopwatch:
    """Prints the time since the previous call, and the peak memory of the given processes."""

    def __init__(self):
        self._began = time.perf_counter()

    def __call__(self, stage: str, processes: tuple[str, ...] = ("self",)) -> None:
        memory = ", ".join(f"{peak_memory(process):,.0f} MB" for process in processes)
        print(f"{stage}: {time.perf_counter() - self._began:.1f} s, {memory}", flush=True)
        self._began = time.perf_counter()


def start(folder: str, workers: str) -> None:
    """Prepares and assembles batches as training does, but without a model."""
    stopwatch = Stopwatch()
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    from experiments.config_files import load_config
    from transformer.data.corpus import Corpus
    from transformer.data.packing import PackedPlan
    from transformer.data.pipeline import TrainingBatches, serve
    from transformer.tasks import resolve

    stopwatch("imports")
    data = resolve(load_config(CONFIG, changes(Path(folder)))).data
    split = Corpus(data).split("train")
    stopwatch("opening: digests of the text files, memory maps")
    plan = PackedPlan(split.source.lengths, split.target.lengths, ROW_LENGTH, BATCH_TOKENS, seed=0)
    stopwatch(
        f"plan of {len(split):,} pairs, {plan.steps_per_epoch:,} steps per epoch, {plan.dropped:,} dropped"
    )
    served = serve(TrainingBatches(split, plan, num_steps=100), 0, int(workers))
    next(served)
    stopwatch(f"first batch, {workers} workers", ("self", *children()))
    for _ in range(50):
        next(served)
    stopwatch(f"50 more batches, {workers} workers", ("self", *children()))
    plan.rows(plan.steps_per_epoch)
    stopwatch("order of another epoch")


def children() -> list[str]:
    """The ids of the worker processes."""
    listed = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
    running = [process for process in listed.stdout.split() if Path(f"/proc/{process}/status").exists()]
    return [process for process in running if peak_memory(process) > 20]


def peak_memory(process: str) -> float:
    """The peak memory of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        start(*sys.argv[1:])
    else:
        seconds, megabytes, output = prepare(Path(sys.argv[1]))
        print(f"{output}prepare: {seconds:.1f} s, {megabytes:,.0f} MB", flush=True)
        for workers in "02":
            command = [sys.executable, "-m", "tests.data.measure", sys.argv[1], workers]
            subprocess.run(command, check=True)
