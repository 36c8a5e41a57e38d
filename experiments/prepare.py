"""Builds the data set, the vocabulary and the token arrays of a config before training.

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
from transformer.data.corpus import Corpus
from transformer.data.records import kind_of
from transformer.tasks import open_task


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags)
    cli.define_workdir(flags, required=False)


def main(flags: FlagValues) -> None:
    if (flags.config is None) == (flags.workdir is None):
        problem = "missing" if flags.config is None else "given"
        raise UserError(f"--config and --workdir are both {problem}; give one of them")
    with preparing() as progress:
        if flags.workdir is None:
            data = cli.config(flags).data
            corpus = Corpus(data, progress=progress)
        else:
            run = Run(flags.workdir)
            data = run.config.data
            corpus = open_task(run.config, run.folder, progress, stored=run.identity).corpus
        splits = {name: corpus.split(name) for name in corpus.splits if corpus.size(name)}
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    kind, details = kind_of(corpus.columns), ""
    if kind == "pairs":
        dropped = int((splits["train"].lengths > data.row_length).sum()) if "train" in splits else 0
        details = f"training drops {dropped:,} pairs longer than data.row_length ({data.row_length}); "
    print(
        f"{corpus.name} is prepared in {corpus.folder}: {kind}: {sizes}; {details}"
        f"vocabulary: {corpus.tokenizer.vocab_size:,} tokens"
    )


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
