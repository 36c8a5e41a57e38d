"""Sets of images of TFDS, selected by name, such as `mnist` and `cifar10`."""

import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from transformer.config import DataConfig, UserError, option
from transformer.data import tfds_sets
from transformer.data.builders import BUILDERS, reporting_damage
from transformer.data.image_set import ImageOptions, ImageSet
from transformer.data.images import Example, Examples
from transformer.data.options import ONLY_A_DEPARTURE
from transformer.data.text import fingerprint

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class TfdsImageOptions(ImageOptions):
    """Options of a TFDS set: a split or a part of a split for each of three splits, as for a set of texts.

    A set without validation images holds out the last tenth of its training images.
    """

    train: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    validation: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)
    test: str | None = option(None, not_in_paper=ONLY_A_DEPARTURE)


class TfdsImages(ImageSet):
    """A set of TFDS with images of one size and their classes."""

    options_type: ClassVar = TfdsImageOptions
    SPLITS: ClassVar = ()

    def __init__(self, data: DataConfig, other_names: Sequence[str]):
        """Finds the set that `data` names; `other_names` are those of sets outside TFDS, for messages."""
        super().__init__(data)
        if data.name in BUILDERS:
            known = ", ".join(other_names)
            raise UserError(f"data.name is {data.name!r}, a set of texts; it must be {known} or a TFDS set")
        packages = ("image_classification",)
        self._find_builder = functools.partial(tfds_sets.find_builder, data, other_names, packages)
        self._builder = self._find_builder()
        features = self._builder.info.features
        kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
        is_labeled = isinstance(kinds.get("label"), tfds.features.ClassLabel)
        if not is_labeled or not isinstance(kinds.get("image"), tfds.features.Image):
            raise UserError(
                f"data.name is {data.name!r}, which has no images with one class each; choose a set of "
                "images, such as mnist or cifar10"
            )
        if None in self.shape:
            raise UserError(
                f"data.name is {data.name!r}, whose images have different sizes; choose a set with one size, "
                "or save the images to class folders and use data.name=image_folder"
            )

    @property
    def name(self):
        parts = fingerprint([], json.dumps([self.options.train, self.options.validation, self.options.test]))
        return f"{self._builder.info.full_name}/{parts}"

    @property
    def shape(self):
        return self._builder.info.features["image"].shape

    @property
    def classes(self):
        return tuple(self._builder.info.features["label"].names)

    def check_tensorflow(self) -> None:
        """Checks that the set can be prepared; see `tfds_sets.check_tensorflow`."""
        tfds_sets.check_tensorflow(self._builder)

    def splits(self):
        if not tfds_sets.is_prepared(self._builder):
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
                tfds_sets.prepare(self._builder)
            self._builder = self._find_builder()  # reads the splits that are prepared now
        info = self._builder.info
        given = {split: getattr(self.options, split) for split in SPLITS}
        if "validation" not in info.splits and given["train"] is None and given["validation"] is None:
            given |= {"train": "train[:90%]", "validation": "train[90%:]"}
        parts = tfds_sets.checked_parts(self.data, info, given)
        if "validation" not in parts:
            raise UserError(
                f"{self.data.name} has no split 'validation'; set data.options.validation to a part of a "
                "split, such as train[90%:]"
            )
        return {split: self._read(parts[split]) for split in SPLITS if split in parts}

    def _read(self, part: str) -> Examples:
        folder = Path(self._builder.data_dir)
        with reporting_damage(folder):
            source = self._builder.as_data_source(split=part)

        def examples() -> Iterator[Example]:
            with reporting_damage(folder):
                for number in range(len(source)):
                    record = source[number]
                    yield record["image"], int(record["label"])

        return Examples(len(source), examples())
