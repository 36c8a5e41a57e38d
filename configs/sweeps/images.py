"""Does a classifier of images need positions, and does it need rows and columns?

Dosovitskiy et al. (2021, appendix D.4) find that positions matter, but that two dimensions are no better than
one. Heo et al. (2024) report gains with rotations by row and column.

    python -m experiments.launch --sweep=configs/sweeps/images.py --root=runs/images --seeds=5

An image of 8 x 8 pixels is cut into 16 patches.
"""

CONFIG = "configs/digits.py:fine"
VARIANTS = {
    "learned": {"model.positions": "learned"},
    "none": {"model.positions": "none"},
    "sinusoidal_2d": {"model.positions": "sinusoidal_2d"},
    "rope_2d": {"model.positions": "rope_2d", "model.rope_base": 100.0},
}
SPLITS = ("test",)
METRICS = ("accuracy", "nll")
PRIMARY = ("accuracy", "test")
