"""Image files of the user, read with Pillow."""

import importlib.util
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from transformer.batch import ImageBatch
from transformer.config import UserError
from transformer.data.text import is_hidden

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def find_images(folder: Path) -> dict[str, list[Path]]:
    """Returns the images of each class, sorted: the files of the folders in `folder`.

    Hidden files and the files of hidden folders are left out.

    Raises:
      UserError: there is no such folder, there are fewer than two classes, or a class has too few images or a
        name that cannot be printed.
    """
    if not folder.is_dir():
        raise UserError(
            f"data.options.folder: {folder} is not a folder; give a folder with a folder per class"
        )
    classes = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            if not path.name.isprintable():
                raise UserError(
                    f"data.options.folder: {folder} has the class folder {path.name!r}; rename it to a name "
                    "without control characters that is valid UTF-8"
                )
            classes[path.name] = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in SUFFIXES and not is_hidden(file, path) and file.is_file()
            ]
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


def read_images(paths: Sequence[str], shape: tuple[int, int, int], num_rows: int) -> ImageBatch:
    """Returns a batch of `num_rows` rows that begins with the given images; see `read_image`.

    The labels are 0, and the ids count from 1.

    Raises:
      UserError: a file cannot be read.
    """
    images = np.zeros((num_rows, *shape), np.uint8)
    labels, ids = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.int32)
    for row, path in enumerate(paths):
        images[row], ids[row] = read_image(Path(path), shape), row + 1
    return ImageBatch(images, labels, ids)


def read_image(path: Path, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "y x c"]:
    """Returns the central part of an image that has the proportions of `shape`, resized to `shape`.

    The orientation in the EXIF data is applied. Pixels are interpolated bicubically. Transparent pixels are
    black. The upper 8 of 16 bits are kept.

    Raises:
      UserError: Pillow is missing, or the file is not an image, has too many pixels, or has more than 16 bits
        per channel.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UserError(f"reading {path} needs Pillow: pip install -e '.[images]'")
    from PIL import Image, ImageOps

    height, width, channels = shape
    try:
        # Given a path, Pillow would map an uncompressed TIFF into memory, with wrong rows if it is turned.
        with open(path, "rb") as file, Image.open(file) as image:
            is_pgm = image.format == "PPM" and image.mode == "I"  # with up to 16 bits, scaled to 16 bits
            if image.mode in ("I", "F") and not is_pgm:  # Pillow would clip such pixels to 0 ... 255
                raise ValueError(f"the pixels have 32 bits, mode {image.mode}")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16") or is_pgm:
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
            fitted = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (width, height))
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS  # Pillow warns from half of it on
        raise UserError(f"{path} has more than {limit:,} pixels; make the image smaller") from None
    except (OSError, ValueError, SyntaxError, TypeError, struct.error) as error:  # damaged files raise all
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise UserError(f"{path} is not a file; give the path of an image") from None
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not an image that Pillow can read ({reason}); convert it to an 8-bit PNG"
        ) from None
    return np.asarray(fitted, np.uint8).reshape(shape)
