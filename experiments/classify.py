"""Classifies images with a trained model.

    python -m experiments.classify --workdir=runs/digits --image=seven.png --image=eight.jpg
    python -m experiments.classify --workdir=runs/digits --split=test --limit=10

The command prints a line for each image: the image, its most probable class and the probability of that
class, separated by tabs. With --split, the true class follows.

The largest central part of an image file that has the proportions of the model's images is resized to their
size. Colors become gray if the model reads gray images.
"""

import sys

import numpy as np
from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.process import set_up_jax
from experiments.run_folder import Run
from experiments.trained_model import Trained, load_trained, open_task_of
from transformer.batch import ImageBatch
from transformer.config import UserError
from transformer.data.image_batches import assemble_images
from transformer.data.image_files import read_images
from transformer.evaluation.classification import class_probabilities
from transformer.files import path_component

BATCH = 64  # images that are classified together


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    absl_flags.DEFINE_multi_string("image", [], "Image file. May be given several times.", flag_values=flags)
    absl_flags.DEFINE_string("split", None, "Split of the data set to classify.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "limit", None, "With --split: number of images, from the first on.", lower_bound=1, flag_values=flags
    )


def main(flags: FlagValues) -> None:
    if bool(flags.image) == (flags.split is not None):
        problem = "given" if flags.image else "missing"
        raise UserError(f"--image and --split are both {problem}; give one of them")
    if flags.limit is not None and flags.split is None:
        raise UserError("--limit needs --split; add --split=NAME or remove --limit")
    set_up_jax()
    run = Run(flags.workdir)
    trained = load_trained(run, task="image_classification")
    if flags.split is None:
        _classify_files(trained, flags.image)
        return
    split = open_task_of(run, trained).test_set(path_component(flags.split, "--split"))
    classes = trained.model.image_format.classes
    for first in range(0, min(len(split), flags.limit or len(split)), BATCH):
        last = min(first + BATCH, len(split), flags.limit or len(split))
        batch = assemble_images(split, np.arange(first, last), BATCH)
        names = [f"{split.name}/{number}" for number in range(first, last)]
        for line, label in zip(_lines(trained, batch, names), batch.labels, strict=False):
            print(f"{line}\t{classes[label]}")


def _classify_files(trained: Trained, paths: list[str]) -> None:
    for first in range(0, len(paths), BATCH):
        chosen = paths[first : first + BATCH]
        num_rows = BATCH if len(paths) > BATCH else len(paths)
        batch = read_images(chosen, trained.model.image_format.shape, num_rows)
        print("\n".join(_lines(trained, batch, chosen)))


def _lines(trained: Trained, batch: ImageBatch, names: list[str]) -> list[str]:
    probabilities = class_probabilities(trained.model, trained.params, batch)[: len(names)]
    classes, best = trained.model.image_format.classes, probabilities.argmax(axis=1)
    return [
        f"{name}\t{classes[number]}\t{row[number]:.4f}"
        for name, number, row in zip(names, best, probabilities, strict=True)
    ]


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
