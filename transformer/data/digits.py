"""digits: the scanned digits that scikit-learn contains."""

import importlib.util
from collections import defaultdict

import numpy as np

from transformer.config import UserError
from transformer.data.image_set import ImageSet
from transformer.data.images import Examples

HELD_OUT = 25  # images of each digit for each of validation and test


class Digits(ImageSet):
    """1,797 scanned digits of 8 x 8 pixels with 17 shades of gray (Alpaydin and Kaynak 1998).

    25 images of each digit are held out for each of validation and test; the split is always the same.
    """

    name = "digits/1"
    shape = (8, 8, 1)
    classes = tuple(map(str, range(10)))

    def splits(self):
        if importlib.util.find_spec("sklearn") is None:
            raise UserError("data.name is 'digits', which needs scikit-learn: pip install -e '.[images]'")
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * 255 / 16).astype(np.uint8)[..., None]
        rng, parts = np.random.default_rng(0), defaultdict(list)
        for label in range(10):
            order = rng.permutation(np.flatnonzero(digits.target == label))
            bounds = (HELD_OUT, 2 * HELD_OUT)
            for split, numbers in zip(("validation", "test", "train"), np.split(order, bounds), strict=True):
                parts[split] += numbers.tolist()
        return {
            split: Examples(
                len(parts[split]), ((images[n], int(digits.target[n])) for n in sorted(parts[split]))
            )
            for split in self.SPLITS
        }
