"""image_folder: the user's own images, a folder of files for each class."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import ClassVar

from transformer.config import UserError, option
from transformer.data.image_files import find_images, read_image
from transformer.data.image_set import ImageOptions, ImageSet
from transformer.data.images import Examples
from transformer.data.options import ONLY_A_DEPARTURE
from transformer.data.text import fingerprint, hold_out, local_path

MAX_SIZE = 4_096  # pixels
HELD_OUT = 0.1  # share of the images of each class for each of validation and test


@dataclasses.dataclass(frozen=True)
class ImageFolderOptions(ImageOptions):
    """Options of `image_folder`."""

    # Folder with a folder of images per class.
    folder: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    # Height and width to which the central square of each image is resized, in pixels.
    image_size: int = option(32, not_in_paper=ONLY_A_DEPARTURE)
    # 3 for color, 1 for gray.
    channels: int = option(3, not_in_paper=ONLY_A_DEPARTURE)

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "image_size")
        self._require("image_size", self.image_size <= MAX_SIZE, f"at most {MAX_SIZE:,} pixels")
        self._require("channels", self.channels in (1, 3), "1 (gray) or 3 (color)")


class ImageFolder(ImageSet):
    """The user's own images: a folder that has a folder for each class.

    The images of a class whose paths have the smallest hashes are held out, `HELD_OUT` of them for each of
    validation and test, but at least one.
    """

    options_type: ClassVar = ImageFolderOptions

    @property
    def name(self):
        names = [path.relative_to(self._folder).as_posix() for path in self._paths]
        settings = [names, self.options.image_size, self.options.channels]
        return f"image_folder/{fingerprint(self._paths, json.dumps(settings))}"

    @property
    def shape(self):
        return (self.options.image_size, self.options.image_size, self.options.channels)

    @property
    def classes(self):
        return tuple(self._by_class)

    @functools.cached_property
    def _folder(self) -> Path:
        if not self.options.folder:
            raise UserError("data.options.folder is not set; set it to a folder with a folder per class")
        return local_path(self.options.folder, "data.options.folder")

    @functools.cached_property
    def _by_class(self) -> dict[str, list[Path]]:
        return find_images(self._folder)

    @functools.cached_property
    def _paths(self) -> list[Path]:
        return [path for paths in self._by_class.values() for path in paths]

    def splits(self):
        parts: dict[str, list[tuple[Path, int]]] = {split: [] for split in self.SPLITS}
        for label, paths in enumerate(self._by_class.values()):
            for split, members in hold_out(self._folder, paths, HELD_OUT).items():
                parts[split] += [(path, label) for path in members]
        return {
            split: Examples(len(members), ((read_image(path, self.shape), label) for path, label in members))
            for split, members in parts.items()
        }
