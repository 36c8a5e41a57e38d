"""Measures preparing a text, and what stands between a prepared text and the first batch.

    python -m tests.data.synthesise /tmp/large 4500000
    python -m tests.data.measure /tmp/large

Reads train.en, train.de, valid.en and valid.de in the folder; prepares in its `data`, which may not exist yet.
Prints, a line a stage, seconds and the peak memory of the process (of each process, with workers).
"""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

VOCABULARY, ROW_LENGTH, BATCH_TOKENS = 37_000, 256, 25_000


def fields(folder: Path) -> dict[str, object]:
    """Of `DataConfig`."""
    files = {name: f"{folder / name}.en,{folder / name}.de" for name in ("train", "valid")}
    return {
        "name": "parallel_text",
        "train": files["train"],
        "validation": files["valid"],
        "vocab_size": VOCABULARY,
        "data_dir": str(folder / "data"),
        "row_length": ROW_LENGTH,
    }


def prepare(folder: Path) -> tuple[float, float, str]:
    """Runs `experiments.prepare`: its seconds, its peak memory in MB, what it said."""
    command = [sys.executable, "-m", "experiments.prepare", "--config=configs/text.py"]
    began = time.perf_counter()
    done = subprocess.run(
        command + [f"--config.data.{name}={value}" for name, value in fields(folder).items()],
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seconds = time.perf_counter() - began
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, done.stdout


def start(folder: str, workers: str) -> None:
    """What training does before its first step, model aside."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    from transformer.config import DataConfig
    from transformer.data.corpus import Corpus
    from transformer.data.pipeline import TrainingBatches, serve
    from transformer.data.plan import PackedPlan

    began = time.perf_counter()

    def told(what, processes=("self",)):
        nonlocal began
        memory = ", ".join(f"{_peak(one):,.0f} MB" for one in processes)
        print(f"{what}: {time.perf_counter() - began:.1f} s, {memory}", flush=True)
        began = time.perf_counter()

    told("imports")
    split = Corpus(DataConfig(**fields(Path(folder)))).split("train")
    told("opening: digests of the text files, memory maps")
    plan = PackedPlan(split.source.lengths, split.target.lengths, ROW_LENGTH, BATCH_TOKENS, seed=0)
    told(f"plan of {len(split):,} pairs, {plan.steps_per_epoch:,} steps an epoch, {plan.dropped:,} dropped")
    served = serve(TrainingBatches(split, plan, steps=100), 0, int(workers))
    next(served)
    told(f"first batch, {workers} workers", ["self", *_children()])
    for _ in range(50):
        next(served)
    told(f"50 more batches, {workers} workers", ["self", *_children()])
    plan.rows(plan.steps_per_epoch)
    told("another epoch's order")


def _children() -> list[str]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
    return [one for one in found.stdout.split() if Path(f"/proc/{one}/status").exists() and _peak(one) > 20]


def _peak(process: str) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        start(*sys.argv[1:])
    else:
        seconds, megabytes, said = prepare(Path(sys.argv[1]))
        print(f"{said}prepare: {seconds:.1f} s, {megabytes:,.0f} MB", flush=True)
        for workers in "02":
            command = [sys.executable, "-m", "tests.data.measure", sys.argv[1], workers]
            subprocess.run(command, check=True)
