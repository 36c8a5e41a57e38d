"""Image files of the user, read with Pillow."""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from transformer.config import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def find_images(folder: Path) -> dict[str, list[Path]]:
    """Returns the images of each class, sorted: the files of the folders in `folder`.

    Raises:
      UserError: there is no such folder, there are fewer than two classes, or a class has too few images.
    """
    if not folder.is_dir():
        raise UserError(
            f"data.options.folder: {folder} is not a folder; give a folder with a folder per class"
        )
    classes = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            files = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES)
            classes[path.name] = [file for file in files if file.is_file()]
    if len(classes) < 2:
        raise UserError(
            f"data.options.folder: {folder} has {len(classes)} class folders; give a folder with two or more "
            "class folders"
        )
    for name, paths in classes.items():
        if len(paths) < 3:
            raise UserError(
                f"data.options.folder: {folder / name} has {len(paths)} images; a class needs 3 or more, for "
                "train, validation and test"
            )
    return classes


def read_image(path: Path, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "y x c"]:
    """Returns the central part of an image that has the proportions of `shape`, resized to `shape`.

    Pixels are interpolated bicubically. Transparent pixels are black.

    Raises:
      UserError: Pillow is missing, or the file is not an image.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UserError(f"reading {path} needs Pillow: pip install -e '.[images]'")
    from PIL import Image, ImageOps

    height, width, channels = shape
    try:
        with Image.open(path) as image:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
            fitted = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (width, height))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path} is not a file; give the path of an image") from None
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not an image that Pillow can read ({reason}); convert it to PNG"
        ) from None
    return np.asarray(fitted, np.uint8).reshape(shape)
