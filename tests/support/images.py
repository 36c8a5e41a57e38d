"""Small images of two classes, and folders of them."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("dark", "light")


def write_folder(folder: Path, num_images: int = 20, size: int = 6) -> Path:
    """Writes PNG files of two classes, which differ in their brightness. Returns the folder."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(num_images):
            pixels = rng.integers(0, 100, (size, size, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder
