"""Small Vision Transformers (Dosovitskiy et al. 2021) on MNIST, CIFAR-10 or your own images.

    python -m experiments.train --config=configs/images.py:mnist --workdir=runs/mnist
    python -m experiments.train --config=configs/images.py:cifar10 --workdir=runs/cifar10
    python -m experiments.train --config=configs/images.py:folder --workdir=runs/own \\
        --config.data.options.folder=FOLDER

Arguments: `cifar10` (the default) or `mnist`, which are sets of TFDS, or `folder`, a folder that has a folder
of images for each class. We have not trained these models.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.task = "image_classification"
    config.model.update(
        kind="image_classifier",
        num_layers=6,
        d_model=192,
        d_ff=768,
        num_heads=3,
        positions="learned",
        residual="pre_norm",
        feed_forward="gelu",
        patch_size=4,
    )
    config.optimizer.update(
        name="adamw",
        schedule="cosine",
        learning_rate=1e-3,
        warmup_steps=1_000,
        beta2=0.999,
        weight_decay=0.05,
    )
    config.optimizer.clip_norm = 1.0
    config.train.update(steps=20_000, batch_size=128, log_every=100, validate_every=1_000)
    _cifar10(config)
    words = {"cifar10": _cifar10, "mnist": _mnist, "folder": _folder}
    return base.with_arguments(config, argument, words, (("cifar10", "mnist", "folder"),))


def _cifar10(config: ConfigDict) -> None:
    config.data.update(name="cifar10", options={})


def _mnist(config: ConfigDict) -> None:
    config.data.update(name="mnist", options={})
    config.train.steps = 5_000


def _folder(config: ConfigDict) -> None:
    config.data.update(name="image_folder", options={"folder": None})
