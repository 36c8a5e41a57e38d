"""Sets of images: names, options and preparation. A name that is not in `IMAGE_SETS` is a set of TFDS.

To add a set, write a subclass of `ImageSet` and one of `ImageOptions`, and add the set to `IMAGE_SETS`.
"""

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from transformer.config import DataConfig, UserError
from transformer.data import tfds_sets
from transformer.data.builders import preparation_lock
from transformer.data.digits import Digits
from transformer.data.image_folder import ImageFolder
from transformer.data.image_set import ImageSet
from transformer.data.images import Images, write_images
from transformer.data.options import read_options
from transformer.data.progress import LogLines, Progress
from transformer.data.text import local_path
from transformer.data.tfds_images import TfdsImages
from transformer.files import path_component

FOLDER = "image_arrays"  # the folder of all prepared images, in `data.data_dir`
# Padding of the crops, and whether images are flipped. Mirrored digits are not digits, and a crop would cut
# an eighth off a small digit.
AUGMENTATION = {"digits": (0, False), "mnist": (2, False), "cifar10": (4, True), "cifar100": (4, True)}

IMAGE_SETS: dict[str, type[ImageSet]] = {"digits": Digits, "image_folder": ImageFolder}


def set_type(name: str) -> type[ImageSet]:
    """Returns the class of the set with this name."""
    return IMAGE_SETS.get(name, TfdsImages)


def resolve_images(data: DataConfig) -> DataConfig:
    """Checks `data.options`, converts values given as text, and completes them with the set's defaults.

    Raises:
      UserError: an option that the set does not have, or a value of the wrong type or range.
    """
    owner = data.name if data.name in IMAGE_SETS else tfds_sets.describe(data.name)
    options = dataclasses.asdict(read_options(set_type(data.name).options_type, data, owner))
    defaults = AUGMENTATION.get(data.name.partition(":")[0], (0, False))
    for field, default in zip(("crop_padding", "flip"), defaults, strict=True):
        options[field] = default if options[field] is None else options[field]
    return dataclasses.replace(data, options=options)


def open_set(data: DataConfig) -> ImageSet:
    """Returns the set that a config names, prepared or not.

    Raises:
      UserError: an unknown set, or an option that cannot be used.
    """
    is_own = data.name in IMAGE_SETS
    images = IMAGE_SETS[data.name](data) if is_own else TfdsImages(data, tuple(IMAGE_SETS))
    padding, (height, width, _) = images.options.crop_padding or 0, images.shape
    if padding >= min(height, width):
        raise UserError(
            f"data.options.crop_padding is {padding}; it must be below the height and width of the images "
            f"({height} x {width} pixels)"
        )
    return images


def check_images(data: DataConfig) -> None:
    """Checks that a set exists, with its folders. Prepares nothing, and uses no network.

    Raises:
      UserError: an unknown set, an option or a folder that cannot be used, or a missing TensorFlow.
    """
    images = open_set(data)
    _ = images.classes  # of a folder, the classes are folders
    if isinstance(images, TfdsImages) and not is_prepared(data, images.name):
        images.check_tensorflow()


def prepare_images(data: DataConfig, progress: Progress | None = None) -> Images:
    """Prepares a set of images, unless it is prepared already, and opens it.

    Raises:
      UserError: an unknown set, an option or a file that cannot be used, a missing package, or a full disk.
    """
    images = open_set(data)
    folder = _folder(data, images.name)
    if not folder.exists():
        with preparation_lock(folder.parent):
            if not folder.exists():
                splits = images.splits()
                write_images(folder, splits, images.shape, images.classes, progress or LogLines())
    return Images(folder, images.name)


def is_prepared(data: DataConfig, name: str) -> bool:
    """Returns whether images of this name are prepared. Reads no raw images."""
    return _folder(data, name).exists()


def open_images(data: DataConfig, name: str) -> Images:
    """Opens images that were prepared earlier. Reads no raw images and writes nothing.

    Raises:
      UserError: the images are not prepared on this machine, or are damaged.
    """
    folder = _folder(data, name)
    if not folder.exists():
        raise UserError(
            f"{name} is not prepared in {folder.parent}; prepare it with "
            "python -m experiments.prepare --workdir=RUN"
        )
    return Images(folder, name)


def present_name(data: DataConfig) -> str | None:
    """Returns the name of the images in their present state; None if they cannot be read."""
    try:
        return open_set(data).name
    except UserError:
        return None


def _folder(data: DataConfig, name: str) -> Path:
    root = local_path(data.data_dir or tfds.core.constants.DATA_DIR, "data.data_dir")
    return root.joinpath(FOLDER, *(path_component(part, "the data") for part in name.split("/")))
