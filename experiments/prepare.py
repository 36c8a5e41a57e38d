"""Builds the data set of a config, its vocabulary and its arrays before training.

    python -m experiments.prepare --config=configs/wmt14.py
    python -m experiments.prepare --workdir=runs/wmt14

Data that is already prepared does not change. Preparing a TFDS data set needs TensorFlow
(pip install -e '.[prepare]'); using the prepared data does not.
"""

import sys

from absl.flags import FlagValues

from experiments import cli
from experiments.progress import preparing
from experiments.run_folder import Run
from transformer.config import UserError
from transformer.tasks import open_task, task_type


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags)
    cli.define_workdir(flags, required=False)


def main(flags: FlagValues) -> None:
    if (flags.config is None) == (flags.workdir is None):
        problem = "missing" if flags.config is None else "given"
        raise UserError(f"--config and --workdir are both {problem}; give one of them")
    run = None if flags.workdir is None else Run(flags.workdir)
    config = cli.config(flags) if run is None else run.config
    with preparing() as progress:
        if run is None:
            task = task_type(config).prepare(config, progress)
        else:
            task = open_task(config, run.folder, progress, stored=run.identity)
        text = task.describe_data()
    print(text)


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
