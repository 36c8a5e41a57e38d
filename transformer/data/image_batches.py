"""Batches of images for training and evaluation, with random crops and flips."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt8

from transformer.batch import ImageBatch
from transformer.data.images import ImageSplit


class ImagePlan:
    """Assigns the images of a split to batches, and computes the images of any step.

    In each epoch, the images are in a random order and spread evenly over the batches, so each image is in
    one batch.

    Attributes:
      seed: the seed of the order.
      num_rows: images per batch. The last row of a batch may be empty.
      steps_per_epoch: number of batches that together hold every image once.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        """Plans batches of at most `batch_size` images."""
        self._num_images, self.seed = num_images, seed
        self.steps_per_epoch = -(-num_images // batch_size)
        self.num_rows = -(-num_images // self.steps_per_epoch)

    def rows(self, step: int) -> Int[np.ndarray, "_"]:
        """Returns the indices of the images in the batch of a step. The first step is 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self._num_images)
        first, last = (self._num_images * number // self.steps_per_epoch for number in (batch, batch + 1))
        return order[first:last]

    def epoch(self, step: int) -> int:
        """Returns the epoch of a step, counted from 0."""
        return step // self.steps_per_epoch


class ImageBatches:
    """Sequence of the batches of all steps. A batch is assembled when it is requested.

    The crop and the flip of an image depend on the seed of the plan, the epoch and the index of the image.
    """

    def __init__(
        self,
        split: ImageSplit,
        plan: ImagePlan,
        num_steps: int,
        crop_padding: int,
        flip: bool,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Gives this process every `process_count`-th row of each batch; see `pipeline.TrainingBatches`."""
        self._split, self._plan, self._num_steps = split, plan, num_steps
        self._crop_padding, self._flip = crop_padding, flip
        self._process_index, self._process_count = process_index, process_count

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> ImageBatch:
        rows = self._plan.rows(step)[self._process_index :: self._process_count]
        batch = assemble_images(self._split, rows, -(-self._plan.num_rows // self._process_count))
        if not len(rows) or not (self._crop_padding or self._flip):
            return batch
        offsets, flips = self._draw(rows, self._plan.epoch(step))
        images = batch.images.copy()
        images[: len(rows)] = augment(images[: len(rows)], offsets, flips, self._crop_padding)
        return batch._replace(images=images)

    def _draw(self, rows, epoch: int) -> tuple[Int[np.ndarray, "n 2"], Bool[np.ndarray, "n"]]:
        """Draws the place of the window of each image, and whether it is flipped."""
        draws = np.array([np.random.default_rng((self._plan.seed, epoch, row)).random(3) for row in rows])
        offsets = np.floor(draws[:, :2] * (2 * self._crop_padding + 1)).astype(np.int64)
        return offsets, (draws[:, 2] < 0.5) & self._flip


def augment(
    images: UInt8[np.ndarray, "n y x c"],
    offsets: Int[np.ndarray, "n 2"],
    flips: Bool[np.ndarray, "n"],
    padding: int,
) -> UInt8[np.ndarray, "n y x c"]:
    """Returns a window of each image after zero padding, mirrored from left to right where `flips` is true.

    Args:
      images: the images.
      offsets: row and column in the padded image of the first pixel of each window.
      flips: whether to mirror each image.
      padding: pixels of padding on each side.
    """
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = [
        image[row : row + height, column : column + width]
        for image, (row, column) in zip(padded, offsets, strict=True)
    ]
    cropped = np.stack(windows)
    return np.where(flips[:, None, None, None], cropped[:, :, ::-1], cropped)


def assemble_images(split: ImageSplit, rows: Int[np.ndarray, "n"], num_rows: int) -> ImageBatch:
    """Makes a batch of the images with the given indices. Rows beyond those are padding."""
    images = np.zeros((num_rows, *split.images.shape[1:]), np.uint8)
    labels, ids = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.int32)
    images[: len(rows)], labels[: len(rows)] = split.images[rows], split.labels[rows]
    ids[: len(rows)] = rows + 1
    return ImageBatch(images, labels, ids)


def evaluation_images(split: ImageSplit, batch_size: int) -> Iterator[ImageBatch]:
    """Yields every image of a split once, in order. All batches have one shape."""
    num_rows = min(batch_size, len(split))
    for first in range(0, len(split), num_rows):
        yield assemble_images(split, np.arange(first, min(first + num_rows, len(split))), num_rows)
