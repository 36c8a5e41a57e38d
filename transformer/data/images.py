"""Sets of images as arrays: prepared once, stored on disk, read through memory maps."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from transformer.batch import ImageFormat
from transformer.config import UserError
from transformer.data.progress import Progress, watched
from transformer.files import atomic_folder
from transformer.json_files import check_types, read_manifest, seal, write_manifest

CHUNK = 1_024  # images that are read or written together
Example = tuple[UInt8[np.ndarray, "y x c"], int]  # an image and the number of its class


class Examples(NamedTuple):
    """The examples of a split, before they are stored.

    Attributes:
      size: number of examples.
      examples: yields exactly `size` pairs of an image and the number of its class.
    """

    size: int
    examples: Iterable[Example]


@dataclasses.dataclass(frozen=True)
class ImageSplit:
    """The images of a split, mapped from files.

    Attributes:
      folder: the folder of the set.
      name: name of the split.
      images: [n, y, x, c], the pixels.
      labels: [n], the number of the class of each image.
      digest: digest of both arrays.
    """

    folder: Path
    name: str
    images: UInt8[np.ndarray, "n y x c"]
    labels: Int[np.ndarray, "n"]
    digest: str
    items: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_items(self) -> int:
        """Number of images."""
        return len(self)

    def __reduce__(self):
        """Pickles the path of the folder, so that processes that assemble batches map the same files."""
        return _load_split, (self.folder, self.name, self.digest)


def _load_split(folder: Path, name: str, digest: str) -> ImageSplit:
    images, labels = (
        np.load(folder / f"{name}.{kind}.npy", mmap_mode="r", allow_pickle=False)
        for kind in ("images", "labels")
    )
    return ImageSplit(folder, name, images, labels, digest)


class Images:
    """A prepared set of images.

    Attributes:
      folder: the folder of the arrays.
      name: name of the prepared data, which changes with the images.
      image_format: the shape and the classes of the images, and the statistics of the training images.
      sizes: number of images per split.
    """

    def __init__(self, folder: Path, name: str):
        """Opens a folder that `write_images` wrote.

        Raises:
          UserError: the folder is damaged.
        """
        self.folder, self.name = folder, name
        types = {"format": dict[str, list], "sizes": dict[str, int], "contents": dict[str, str]}
        values = check_types(folder, read_manifest(folder), types)
        self.image_format = ImageFormat.from_json(values["format"])
        self.sizes: dict[str, int] = values["sizes"]
        self._contents: dict[str, str] = values["contents"]

    @property
    def content(self) -> str:
        """Digest of the images of the training and validation splits, and of the names of the classes."""
        digests = {split: self._contents[split] for split in ("train", "validation")}
        return seal({**digests, "classes": list(self.image_format.classes)})

    def split(self, name: str) -> ImageSplit:
        """Returns the images of a split.

        Raises:
          UserError: there is no such split.
        """
        if name not in self.sizes:
            raise UserError(f"{self.name} has no split {name!r}; choose {', '.join(self.sizes)}")
        return _load_split(self.folder, name, self._contents[name])


def write_images(
    folder: Path,
    splits: Mapping[str, Examples],
    shape: tuple[int, int, int],
    classes: Sequence[str],
    progress: Progress,
) -> None:
    """Writes the arrays of all splits and a manifest into a new folder, completely or not at all.

    Raises:
      UserError: a split has no images.
    """
    with atomic_folder(folder) as partial:
        contents, statistics = {}, {}
        for name, (size, examples) in splits.items():
            if not size:
                raise UserError(f"split {name!r} of the images is empty; give it at least one image")
            images, labels = (
                np.lib.format.open_memmap(partial / f"{name}.{kind}.npy", "w+", dtype, dimensions)
                for kind, dtype, dimensions in (
                    ("images", np.uint8, (size, *shape)),
                    ("labels", np.int32, (size,)),
                )
            )
            numbered = ([(number, *example)] for number, example in enumerate(examples))
            for ((number, image, label),) in watched(numbered, progress, f"writing {name}", "images", size):
                images[number], labels[number] = image, label
            contents[name] = _digest(images, labels)
            statistics[name] = channel_statistics(images)
        mean, std = statistics["train"]
        image_format = ImageFormat(tuple(shape), tuple(classes), mean, std)
        sizes = {name: size for name, (size, _) in splits.items()}
        write_manifest(partial, format=image_format._asdict(), sizes=sizes, contents=contents)


def channel_statistics(
    images: UInt8[np.ndarray, "n y x c"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, where white is 1. A constant channel has 1."""
    count, sums, squares = 0, 0, 0
    for first in range(0, len(images), CHUNK):
        pixels = images[first : first + CHUNK].reshape(-1, images.shape[-1]).astype(np.int64)
        count += len(pixels)
        sums, squares = sums + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = sums / count / 255
    std = np.sqrt(np.maximum(squares / count / 255**2 - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.where(std < 1e-6, 1.0, std).tolist())


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        for first in range(0, len(array), CHUNK):
            digest.update(array[first : first + CHUNK].tobytes())
    return digest.hexdigest()
