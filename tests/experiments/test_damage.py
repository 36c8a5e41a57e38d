"""Damage to the files of a run and of its prepared data.

A command on damaged files prints an error, gives the same result as on undamaged files, or warns that it uses
an earlier checkpoint. It never gives a different result without a warning.

A seeded sample of cases runs by default; CASES=all runs all of them. docs/reliability.md has the figures.
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments import train
from experiments.process import USAGE
from experiments.stop_signal import PREEMPTED
from tests.support.commands import ROOT, SMOKE, call
from transformer.json_files import read_sealed
from transformer.training.metric_log import read_metrics

pytestmark = pytest.mark.faults

SEED = 20261126
NUM_CASES = {"flip": 200, "truncate": 60, "delete": 60}
NUM_SAMPLED = 16
ALL = [(kind, number) for kind, count in NUM_CASES.items() for number in range(count)]
CASES = ALL if os.environ.get("CASES") == "all" else random.Random(SEED).sample(ALL, NUM_SAMPLED)

LINES = b"twelve\nninety-one; three\n"
# Commands to run after damage to a file, by the beginning of its name. The key "" is for all other files.
READERS = {
    "run/metrics.jsonl": ("draw", "resume"),
    "run/eval": ("compare",),
    "run/tensorboard": ("resume",),
    "run/result.json": ("resume",),
    "data": ("evaluate", "resume"),
    "": ("compare", "translate", "draw", "evaluate", "resume"),
}


class Answer(NamedTuple):
    """The answer of a command.

    Attributes:
      status: the exit status.
      result: the result, or the error message if the status is not 0.
      warning: whether the command warned that it uses an earlier checkpoint.
    """

    status: int
    result: object
    warning: bool = False


class StopAfter:
    """Replaces `StopSignal`; requests a stop after some steps."""

    def __init__(self, steps):
        self.steps_left = steps

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self):
        self.steps_left -= 1
        return self.steps_left == 0

    def request(self):
        raise AssertionError("the output is never closed")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a run that was stopped at step 15 of 20, a finished run, and their data."""
    folder = tmp_path_factory.mktemp("base")
    config = SMOKE[0].replace("--config=", f"--config={ROOT}/")
    flags = (config, *SMOKE[1:], "--config.data.data_dir=data", "--config.train.steps=20")
    call("train", *flags, "--workdir=whole", cwd=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "StopSignal", lambda *_: StopAfter(15))
        call("train", *flags, "--workdir=run", cwd=folder, status=PREEMPTED)
    call("evaluate", "--workdir=run", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def expected(base, tmp_path_factory) -> dict[str, Answer]:
    """The answers of the commands for the undamaged files."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("expected") / "copy")
    answers = {reader: answer(reader, folder) for reader in READERS[""]}
    assert all(given.status == 0 for given in answers.values())
    return answers


def answer(reader: str, folder: Path) -> Answer:
    """Runs one of the commands on the run in a folder."""
    commands = {
        "compare": ("evaluate", "--workdir=whole", "--compare=run"),
        "translate": ("translate", "--workdir=run"),
        "draw": ("visualize", "--workdir=run"),
        "evaluate": ("evaluate", "--workdir=run"),
        "resume": ("train", "--workdir=run"),
    }
    stdin = LINES if reader == "translate" else b""
    done = call(*commands[reader], cwd=folder, stdin=stdin, status=None)
    if done.status:
        assert done.status == USAGE, done.stderr
        return Answer(done.status, done.stderr.splitlines()[-1])
    results = {
        "compare": lambda: read_sealed(folder / "whole/eval/test.compare-run.json")["metrics"],
        "translate": lambda: done.stdout,
        "draw": lambda: (folder / "run/figures/learning_curve.png").read_bytes(),
        "evaluate": lambda: [
            read_sealed(folder / "run/eval/test.json"),
            (folder / "run/eval/test.hyp.txt").read_bytes(),
        ],
        "resume": lambda: [
            read_sealed(folder / "run/result.json")["params_sha256"],
            [(record["step"], record["kind"], record["loss"]) for record in read_metrics(folder / "run")],
        ],
    }
    return Answer(0, results[reader](), "warning: checkpoint " in done.stderr)


def damage(folder: Path, kind: str, number: int) -> str:
    """Damages one file, chosen by `number`. Returns its name and, if it still exists, the offset."""
    files = sorted(
        path
        for part in ("run", "data")
        for path in (folder / part).rglob("*")
        if path.is_file() and path.stat().st_size
    )
    rng = random.Random(f"{SEED} {kind} {number}")
    path = files[number % len(files)] if number < len(files) else rng.choice(files)
    content, name = bytearray(path.read_bytes()), str(path.relative_to(folder))
    if kind == "delete":
        path.unlink()
        return name
    place = rng.randrange(len(content))
    if kind == "truncate":
        path.write_bytes(content[:place])
    else:
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return f"{name}:{place}"


# Orbax's threads report a closed event loop after a failed read; `cli.run` hides this.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "number"), CASES)
def test_damage_never_gives_a_different_result_without_a_warning(
    base, expected, tmp_path, kind, number, record_property
):
    folder = shutil.copytree(base, tmp_path / "copy")
    place = damage(folder, kind, number)
    readers = next(readers for start, readers in READERS.items() if place.startswith(start))
    outcomes = {}
    for reader in readers:
        given = answer(reader, folder)
        if given.status == 0 and not given.warning:
            assert given == expected[reader], (
                f"{kind} at {place}: {reader} gave a different result without a warning"
            )
        if given.warning and reader == "resume":  # fewer steps were saved, but the weights are the same
            assert given.result[0] == expected[reader].result[0], f"{kind} at {place}: other weights"
        outcomes[reader] = ("earlier" if given.warning else "same") if given.status == 0 else given.result
    record_property("outcome", json.dumps([kind, place, outcomes]))
