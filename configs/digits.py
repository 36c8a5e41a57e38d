"""A small Vision Transformer (Dosovitskiy et al. 2021) on the 1,797 digits of scikit-learn.

    python -m experiments.train --config=configs/digits.py --workdir=runs/digits

Accuracy on the 250 test images is 98.4 ± 0.4 % over five seeds, and that of scikit-learn's SVC is 99.2 %
(docs/images.md). Five seeds took 134 seconds of processor time (jax 0.10.2, 2026-11-29).

Arguments: `fine` cuts an image into 16 patches of 2 x 2 pixels instead of 4 patches of 4 x 4 pixels.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.task = "image_classification"
    config.model.update(
        kind="image_classifier",
        num_layers=4,
        d_model=64,
        d_ff=128,
        num_heads=4,
        patch_size=4,
        positions="learned",
        residual="pre_norm",
        feed_forward="gelu",
        dropout_rate=0.2,
    )
    config.data.update(name="digits", options={})
    config.optimizer.update(
        name="adamw", schedule="cosine", learning_rate=3e-3, warmup_steps=100, weight_decay=0.05
    )
    config.train.update(steps=700, batch_size=64, log_every=50, validate_every=100)
    return base.with_arguments(config, argument, {"fine": _fine})


def _fine(config: ConfigDict) -> None:
    config.model.patch_size = 2
    config.train.update(steps=1_500, validate_every=250)
