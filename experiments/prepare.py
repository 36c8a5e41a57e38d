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
from transformer.config import ExperimentConfig, UserError
from transformer.data.corpus import Corpus
from transformer.data.image_sets import prepare_images
from transformer.data.records import kind_of
from transformer.tasks import open_task


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags)
    cli.define_workdir(flags, required=False)


def main(flags: FlagValues) -> None:
    if (flags.config is None) == (flags.workdir is None):
        problem = "missing" if flags.config is None else "given"
        raise UserError(f"--config and --workdir are both {problem}; give one of them")
    run = None if flags.workdir is None else Run(flags.workdir)
    config = cli.config(flags) if run is None else run.config
    is_text = config.task != "image_classification"
    print((_prepare_text if is_text else _prepare_images)(config, run))


def _prepare_images(config: ExperimentConfig, run: Run | None) -> str:
    """Prepares images, and describes them."""
    with preparing() as progress:
        if run is None:
            images = prepare_images(config.data, progress)
        else:
            images = open_task(config, run.folder, progress, stored=run.identity).images
    sizes = ", ".join(f"{name} {size:,}" for name, size in images.sizes.items())
    height, width, channels = images.image_format.shape
    return (
        f"{images.name} is prepared in {images.folder}: images: {sizes}; {height} x {width} pixels, "
        f"{channels} channels, {len(images.image_format.classes)} classes"
    )


def _prepare_text(config: ExperimentConfig, run: Run | None) -> str:
    """Prepares text, its vocabulary and its tokens, and describes them."""
    data = config.data
    with preparing() as progress:
        if run is None:
            corpus = Corpus(data, progress=progress)
        else:
            corpus = open_task(config, run.folder, progress, stored=run.identity).corpus
        splits = {name: corpus.split(name) for name in corpus.splits if corpus.size(name)}
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    kind, details = kind_of(corpus.columns), ""
    if kind == "pairs":
        dropped = int((splits["train"].lengths > data.row_length).sum()) if "train" in splits else 0
        details = f"training drops {dropped:,} pairs longer than data.row_length ({data.row_length}); "
    return (
        f"{corpus.name} is prepared in {corpus.folder}: {kind}: {sizes}; {details}"
        f"vocabulary: {corpus.tokenizer.vocab_size:,} tokens"
    )


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
