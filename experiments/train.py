"""Trains a run, or goes on with one.

    python -m experiments.train --config=configs/multi30k.py --workdir=runs/m30k --config.train.seed=1
    python -m experiments.train --workdir=runs/m30k

The second form reads the run's own config.json. Ctrl-C or SIGTERM saves and exits with status 75.
"""

import contextlib
import time
import traceback

from absl import flags
from ml_collections import config_flags

from experiments import entry
from experiments.progress import clock, training_observer
from experiments.runs import Run
from transformer.config import ExperimentConfig, UserError
from transformer.disk import room
from transformer.model import build
from transformer.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its arguments after a colon.")
GO_ON = ", then give the same command again: it goes on from the last checkpoint"
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)


def main() -> int:
    entry.use_compilation_cache()
    run = Run(WORKDIR.value)
    given = entry.config_from_flag(CONFIG.value)
    if given is not None:
        build(given.model, vocab_size=1)  # a name that does not exist must not start a run
    config = run.begin(given)
    with run.locked():
        return _train(run, config)


def _train(run: Run, config: ExperimentConfig) -> int:
    before = run.result
    if before.get("status") == "done":
        print(f"{run.folder} is trained already: {before['step']} steps in {clock(before['seconds'])}")
        return 0
    started = time.time()
    run.write_result(**before | {"status": "running"})

    def seconds():
        return before.get("seconds", 0) + time.time() - started

    try:
        with room(run.folder, GO_ON), training_observer(config.train.steps) as observer:
            outcome = train(config, run.folder, observer, entry.stop_signal("stopping: saving first"))
    except UserError:
        with contextlib.suppress(UserError):  # a full disk has no room for this either
            run.write_result(**before | {"status": "failed", "seconds": seconds()})
        raise
    except BaseException:
        (run.folder / "error.txt").write_text(traceback.format_exc())
        run.write_result(**before | {"status": "failed", "seconds": seconds()})
        raise
    run.write_result(
        status="done" if outcome.finished else "preempted",
        step=outcome.step,
        tokens_seen=outcome.tokens_seen,
        validation=outcome.validation,
        params_sha256=outcome.params_sha256,
        seconds=seconds(),
    )
    print(f"{run.folder}: {outcome.step} of {config.train.steps} steps in {clock(seconds())}")
    if outcome.finished:
        return 0
    print(f"saved; python -m experiments.train --workdir={run.folder} goes on")
    return entry.PREEMPTED


if __name__ == "__main__":
    entry.run(main)
