"""How far is a small Vision Transformer from a support vector machine on few, small images?

A Vision Transformer assumes less about images than a convolutional network, so it needs more training images
(Dosovitskiy et al. 2021). This data set has 1,297. docs/digits.py runs this study, and prints its scores
beside those of scikit-learn's classifiers.

    python -m experiments.launch --sweep=configs/sweeps/digits.py --root=runs/digits --seeds=5
"""

CONFIG = "configs/digits.py"
VARIANTS = {"vision_transformer": {}}
SPLITS = ("test", "validation")
METRICS = ("accuracy", "nll")
PRIMARY = ("accuracy", "test")
