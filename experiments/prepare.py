"""Builds the data set, the vocabulary and the token arrays of a config before training.

    python -m experiments.prepare --config=configs/wmt14.py

Existing data does not change. Preparing a TFDS data set needs TensorFlow (pip install -e '.[prepare]'); using
the prepared data does not.
"""

import sys

from absl.flags import FlagValues

from experiments import cli
from experiments.progress import preparing
from transformer.data.corpus import Corpus


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags, required=True)


def main(flags: FlagValues) -> None:
    data = cli.config(flags).data
    with preparing() as progress:
        corpus = Corpus(data, progress=progress)
        splits = {name: corpus.split(name) for name in corpus.splits if corpus.size(name)}
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    dropped = int((splits["train"].lengths > data.row_length).sum()) if "train" in splits else 0
    print(
        f"{corpus.name} is prepared in {corpus.folder}: pairs: {sizes}; training drops {dropped:,} pairs "
        f"longer than data.row_length ({data.row_length}); vocabulary: {corpus.tokenizer.vocab_size:,} tokens"
    )


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
