"""Image classification: images of one size, the encoder of the Transformer, cross-entropy and accuracy."""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from transformer.batch import ImageBatch, ImageFormat
from transformer.config import UserError, result_hash
from transformer.data import image_sets
from transformer.data.image_batches import ImageBatches, ImagePlan, evaluation_images
from transformer.data.images import Images
from transformer.data.pipeline import serve
from transformer.json_files import finite
from transformer.model import ImageClassifier, build_image_classifier, check_names
from transformer.model.dropout import Dropout
from transformer.tasks.checks import (
    check_model_kind,
    check_raw_data,
    check_stored_config,
    check_stored_content,
    check_training,
)
from transformer.tasks.task import Evaluated, LoadedModel, Task, eval_totals
from transformer.training.losses import smoothed_cross_entropy
from transformer.training.metric_log import add_totals
from transformer.training.trainable import Hyperparameters, Totals

log = logging.getLogger(__name__)

NUM_SHOWN = 10  # names of classes in messages


class ImageClassification(Task):
    """Predicts the class of an image (Dosovitskiy et al. 2021).

    Attributes:
      images: the images of each split.

    Differs from the paper: the inputs are images, and nothing is translated.
    """

    criterion = "nll"
    unit = records = "images"
    kinds = ("image_classifier",)
    row_format = "images of {:,} tokens"

    def __init__(self, config, images: Images):
        self.config, self.images = config, images
        self.model = build_image_classifier(config.model, images.image_format)

    @classmethod
    def resolve(cls, config):
        check_names(config.model)
        check_model_kind(cls, config)
        check_training(config)
        data = image_sets.resolve_images(config.data)
        ImageClassifier.check(config.model, image_sets.open_set(data).shape)
        return dataclasses.replace(config, data=data)

    @classmethod
    def default_options(cls, data):
        return image_sets.resolve_images(dataclasses.replace(data, options={})).options

    @classmethod
    def options_type(cls, config):
        return image_sets.set_type(config.data.name).options_type

    @classmethod
    def check_split_name(cls, config, split):
        names = image_sets.set_type(config.data.name).SPLITS
        if names and split not in names:
            raise UserError(f"{config.data.name} has no split {split!r}; choose {', '.join(names)}")

    @classmethod
    def present_data(cls, config):
        return image_sets.present_name(config.data)

    @classmethod
    def check_data(cls, config):
        image_sets.check_images(config.data)

    @classmethod
    def open(cls, config, folder, progress=None, stored=None, may_prepare=True, tokenizer=None):
        if stored is None:
            return cls.prepare(config, progress)
        name = stored["data"]
        if may_prepare:
            check_stored_config(cls, config, folder, stored)
            check_raw_data(folder, name, image_sets.present_name(config.data))
            if not image_sets.is_prepared(config.data, name):
                image_sets.prepare_images(config.data, progress)
        images = image_sets.open_images(config.data, name)
        check_stored_content(folder, images.folder, images.content, stored)
        return cls(config, images)

    @classmethod
    def is_prepared(cls, config, identity):
        return image_sets.is_prepared(config.data, identity["data"])

    @classmethod
    def prepare(cls, config, progress=None):
        return cls(config, image_sets.prepare_images(config.data, progress))

    def describe_data(self):
        images = self.images
        sizes = ", ".join(f"{name} {size:,}" for name, size in images.sizes.items())
        height, width, channels = images.image_format.shape
        return (
            f"{images.name} is prepared in {images.folder}: images: {sizes}; {height} x {width} pixels, "
            f"{channels} channels; {_class_list(images.image_format.classes)}"
        )

    @property
    def splits(self):
        return self.images.sizes

    @classmethod
    def load_model(cls, config, folder, metadata):
        image_format = ImageFormat.from_json(metadata["task"]["format"])
        return LoadedModel(build_image_classifier(config.model, image_format), tokenizer=None)

    @classmethod
    def planned_model(cls, config):
        images = image_sets.open_set(config.data)
        channels = images.shape[-1]
        return build_image_classifier(
            config.model,
            ImageFormat(images.shape, tuple(images.classes), (0.0,) * channels, (1.0,) * channels),
        )

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        return {
            "config": result_hash(self.config, self.options_type(self.config)),
            "data": self.images.name,
            "content": self.images.content,
        }

    @property
    def metadata(self) -> dict[str, Any]:
        return {"format": self.images.image_format._asdict()}

    @functools.cached_property
    def plan(self) -> ImagePlan:
        """The assignment of images to training batches."""
        train, format_ = self.config.train, self.images.image_format
        plan = ImagePlan(self.images.sizes["train"], train.batch_size, train.seed)
        log.info(
            "%s images of %d x %d pixels, %d images per step; %s",
            f"{self.images.sizes['train']:,}",
            *format_.shape[:2],
            plan.num_rows,
            _class_list(format_.classes),
        )
        return plan

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    @property
    def uniform_loss(self) -> float:
        return math.log(len(self.images.image_format.classes))

    @classmethod
    def loss_fn(cls, config, model):
        return functools.partial(classification_loss, model, z_loss=config.train.z_loss)

    @classmethod
    def metrics(cls, config):
        return ("accuracy", "nll", "loss")

    @classmethod
    def step_shape(cls, config):
        grid, parts = cls.planned_model(config).grid, config.train.accumulation
        rows = config.train.batch_size + -config.train.batch_size % parts
        return {"rows": rows, "row_length": grid.num_tokens, "parts": parts}

    @classmethod
    def full_rows(cls, config, num_rows):
        shape = image_sets.open_set(config.data).shape
        numbers = jax.ShapeDtypeStruct((num_rows,), jnp.int32)
        return ImageBatch(jax.ShapeDtypeStruct((num_rows, *shape), jnp.uint8), numbers, numbers)

    def batches(self, first_step: int) -> Iterator[ImageBatch]:
        options = self.config.data.options
        batches = ImageBatches(
            self.images.split("train"),
            self.plan,
            self.config.train.steps,
            options["crop_padding"],
            options["flip"],
            jax.process_index(),
            jax.process_count(),
        )
        return serve(batches, first_step, self.config.data.workers)

    def example_ids(self, step):
        return self.plan.rows(step).tolist()

    def validation_batches(self) -> Iterator[ImageBatch]:
        """Yields the whole validation split in every process, so the split need not be divided among them."""
        return evaluation_images(self.images.split("validation"), self.config.train.batch_size)

    def summary(self, totals):
        return summarize(totals)

    def test_set(self, split):
        return self.images.split(split)

    @classmethod
    def evaluate(cls, config, loaded, params, test_set, progress=lambda num_done: None):
        """Scores a model on the images of a split; see `Task.evaluate`."""
        loss_fn = cls.loss_fn(config, loaded.model)
        batches = evaluation_images(test_set, config.train.batch_size)

        def totals() -> Iterator[Totals]:
            for batch, batch_totals in eval_totals(config, loss_fn, params, batches):
                yield batch_totals
                progress(int(batch.ids.max()))

        summary = summarize(add_totals(totals()))
        scores = {name: finite(summary[name]) for name in cls.metrics(config)}
        return Evaluated({**scores, "images": len(test_set), "signatures": {}, "by_length": []})


def _class_list(classes: Sequence[str]) -> str:
    """Returns the number of classes and the names of the first ones."""
    more = ", ..." if len(classes) > NUM_SHOWN else ""
    return f"{len(classes)} classes: {', '.join(classes[:NUM_SHOWN])}{more}"


def classification_loss(
    model: ImageClassifier,
    params: PyTree,
    batch: ImageBatch,
    key: Key[Array, ""] | None,
    hyperparameters: Hyperparameters,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Totals]:
    """Returns cross-entropy with label smoothing and z-loss, summed over images, in nats; see `LossFn`."""
    dropout = None if key is None else Dropout(key, hyperparameters.dropout_rate)
    logits = model.apply({"params": params}, batch.images, batch.ids, dropout)
    entropy = smoothed_cross_entropy(logits, batch.labels, hyperparameters.label_smoothing, z_loss)
    counts = batch.ids != 0
    names = ("loss", "nll", "correct")  # correct: images whose class is the most probable prediction
    totals = {name: jnp.sum(getattr(entropy, name), where=counts, dtype=jnp.float32) for name in names} | {
        "count": jnp.sum(counts, dtype=jnp.float32)
    }
    return totals["loss"], totals


def summarize(totals: Mapping[str, float]) -> dict[str, float]:
    """Returns mean losses per image, in nats, and accuracy."""
    means = {name: totals[name] / totals["count"] for name in ("loss", "nll", "correct")}
    return {"loss": means["loss"], "nll": means["nll"], "accuracy": means["correct"]}
