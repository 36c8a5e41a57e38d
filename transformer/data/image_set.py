"""Base class of the sets of images."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from transformer.config import DataConfig, option
from transformer.data.images import Examples
from transformer.data.options import ONLY_A_DEPARTURE, Options, read_options


@dataclasses.dataclass(frozen=True)
class ImageOptions(Options):
    """Options of every set of images. None stands for the set's default; see `image_sets`."""

    # Pixels of padding on each side, from which a random window of the image's size is cut in training.
    crop_padding: int | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    # Whether each training image is mirrored from left to right with a probability of 1/2, drawn again in
    # each epoch.
    flip: bool | None = option(None, not_in_paper=ONLY_A_DEPARTURE)

    def __post_init__(self):
        self._at_least(0, "crop_padding")


class ImageSet(abc.ABC):
    """A set of images before its preparation.

    Attributes:
      SPLITS: names of the splits; empty if they are unknown before the preparation.
      data: the config.
      options: an instance of `options_type`.
    """

    options_type: ClassVar[type[ImageOptions]] = ImageOptions
    SPLITS: ClassVar[Sequence[str]] = ("train", "validation", "test")

    def __init__(self, data: DataConfig):
        self.data, self.options = data, read_options(self.options_type, data, data.name)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Name of the prepared images, as a path. Different images must have different names."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""

    @property
    @abc.abstractmethod
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    @abc.abstractmethod
    def splits(self) -> dict[str, Examples]:
        """Returns the examples of each split."""
