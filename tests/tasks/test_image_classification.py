"""The task of image classification: losses by hand, resumed runs, several devices, and commands."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config_files import load_config
from experiments.costs import describe
from tests.support.commands import ROOT, call, refuse
from tests.support.errors import refused
from tests.support.images import write_folder
from tests.support.tiny import random_params
from tests.support.training import run_or_resume
from transformer.config import ExperimentConfig
from transformer.data.image_batches import assemble_images, evaluation_images
from transformer.evaluation.classification import class_probabilities
from transformer.fidelity import is_read
from transformer.tasks import ImageClassification, LoadedModel, open_task, resolve
from transformer.training.trainable import Hyperparameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images of two classes and of 4 x 4 pixels."""
    return write_folder(tmp_path_factory.mktemp("images") / "classes", size=4)


@pytest.fixture
def config(folder):
    """A run of 12 steps, with one layer and four patches, on 32 training images."""
    changes = {key.removeprefix("config."): value for key, value in flags_of(folder).items()}
    changes |= {"train.steps": 12, "train.validate_every": 4, "train.log_every": 1}
    return load_config(CONFIG, changes)


CONFIG = str(ROOT / "configs/images.py:folder,smoke")


def flags_of(folder) -> dict[str, str | int]:
    """The flags of a run on the images of the folder."""
    return {
        "config.data.options.folder": str(folder),
        "config.data.options.image_size": 4,
        "config.data.options.flip": True,
        "config.data.options.crop_padding": 1,
        "config.data.data_dir": str(folder.parent / "prepared"),
        "config.model.patch_size": 2,
        "config.train.parallelism": "single",
        "config.train.batch_size": 10,
    }


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_one_without_a_stop(config, tmp_path):
    whole = run_or_resume(config, tmp_path / "whole")
    run_or_resume(config, tmp_path / "parts", stop_after=6)
    resumed = run_or_resume(config, tmp_path / "parts")
    assert resumed.finished
    assert resumed.params_sha256 == whole.params_sha256
    assert whole.validation["accuracy"] == 1.0
    assert whole.units_seen == 96  # 3 epochs of 32 images


def test_the_scores_of_a_split_equal_those_of_single_images(config, tmp_path):
    """The last batch has padding."""
    task = open_task(resolve(config), tmp_path)
    params = random_params(task.model)
    split = task.test_set("train")

    evaluated = ImageClassification.evaluate(task.config, LoadedModel(task.model, None), params, split)

    batch = assemble_images(split, np.arange(32), 32)
    log_probs = np.log(class_probabilities(task.model, params, batch).astype(np.float64))
    nll = -log_probs[np.arange(32), split.labels]
    smoothed = 0.9 * nll - 0.1 * log_probs.mean(axis=1)
    scores = evaluated.scores
    assert scores["images"] == 32
    assert scores["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    assert scores["loss"] == pytest.approx(smoothed.mean(), rel=1e-5)
    assert scores["accuracy"] == pytest.approx((log_probs.argmax(axis=1) == split.labels).mean())
    assert set(ImageClassification.metrics(config)) <= scores.keys()


def test_parts_of_a_batch_have_the_gradient_of_the_batch(config, tmp_path):
    """Padding makes the parts equal in size. A padding image must not count."""
    task = open_task(resolve(config), tmp_path)
    params = random_params(task.model)
    (batch, *_) = evaluation_images(task.images.split("train"), 10)
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:2])]), batch)
    gradient = jax.jit(jax.grad(task.loss, has_aux=True))
    hyperparameters = Hyperparameters(1.0, 0.0, 0.1)

    whole, totals = gradient(params, padded, None, hyperparameters)
    halves = [
        gradient(
            params, jax.tree.map(lambda x, part=part: jnp.where(part(x), x, 0), padded), None, hyperparameters
        )
        for part in (first_half, lambda x: ~first_half(x))
    ]

    assert totals["count"] == 10
    assert sum(float(half[1]["count"]) for half in halves) == 10
    summed = jax.tree.map(lambda a, b: a + b, halves[0][0], halves[1][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), summed, whole)


def first_half(x):
    return np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) < 6


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["pmap", "mesh"])
def test_runs_on_several_devices_equal_one_on_a_device(config, tmp_path, parallelism):
    single = run_or_resume(config, tmp_path / "single")
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, parallelism=parallelism))
    several = run_or_resume(changed, tmp_path / "several")
    assert several.validation["nll"] == pytest.approx(single.validation["nll"], rel=1e-3)


TEXT_FIELDS = (
    *("model.embeddings", "model.decoder_layers", "model.max_positions", "model.overflow", "data.source"),
    *("data.target", "data.tokenizer", "data.vocab_size", "data.byte_fallback", "data.row_length"),
    *("train.batch_tokens", "decode.beam_size", "decode.sampling", "decode.batch_tokens"),
)
IMAGE_FIELDS = ("model.patch_size", "model.pooling", "train.batch_size")


def test_fields_of_text_have_no_effect_on_images_and_the_other_way_round(config):
    text = ExperimentConfig()
    assert not any(is_read(field, config) for field in TEXT_FIELDS)
    assert all(is_read(field, text) for field in {*TEXT_FIELDS})
    assert all(is_read(field, config) for field in (*IMAGE_FIELDS, "decode.average_last"))
    assert not any(is_read(field, text) for field in IMAGE_FIELDS)
    vain = dataclasses.replace(config, data=dataclasses.replace(config.data, vocab_size=99))
    (note,) = describe(resolve(vain))["notes"]
    assert note.startswith("fields without effect in this config: data.vocab_size")


def test_the_costs_are_those_of_the_images(config):
    costs = describe(resolve(config))
    assert costs["step"] == {"rows": 10, "row_length": 5, "parts": 1}
    m, f, classes = 32, 64, 2
    encoder = 4 * m * m + 2 * m * f + f + m + 3 * 2 * m  # the last term is that of three norms
    patches, class_token, positions, head = (2 * 2 * 3 + 1) * m, m, 5 * m, (m + 1) * classes
    assert costs["parameters"] == patches + class_token + positions + encoder + head
    assert costs["flops_per_step"] > 0


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"kind": "transformer"}, "model.kind is 'transformer'; with task=image_classification, it must be one of: image_classifier"),
        ("model", {"patch_size": 3}, "model.patch_size is 3; it must divide the height and the width of the images (4 x 4 pixels)"),
        ("model", {"positions": "alibi"}, "model.positions is 'alibi'; with model.kind=image_classifier, it must be one of"),
        ("data", {"name": "number_words", "options": {}}, "data.name is 'number_words', a set of texts; it must be digits"),
        ("optimizer", {"name": "x"}, "optimizer.name is 'x'"),
    ],
    ids=str,
)  # fmt: skip
def test_an_unusable_config_is_refused(config, tmp_path, section, changes, message):
    changed = dataclasses.replace(getattr(config, section), **changes)
    config = dataclasses.replace(config, **{section: changed})
    assert refused(lambda: open_task(resolve(config), tmp_path)).startswith(message)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [("image_folder", {"folder": "/none", "image_size": "4"}, 4), ("digits", {}, 8), ("mnist", {}, 28)],
)
def test_patches_that_do_not_divide_the_images_are_refused_before_any_data_is_read(
    config, tmp_path, name, options, size
):
    """`train` then makes no run folder. A study of several tasks asks only `resolve` about a variant."""
    model = dataclasses.replace(config.model, patch_size=3)
    data = dataclasses.replace(config.data, name=name, options=options, data_dir=str(tmp_path / "data"))
    config = dataclasses.replace(config, model=model, data=data)
    assert refused(resolve, config) == (
        "model.patch_size is 3; it must divide the height and the width of the images "
        f"({size} x {size} pixels)"
    )
    assert not (tmp_path / "data").exists()


def test_images_of_another_size_than_the_default_have_costs(config):
    """The patches do not divide images of the default size, with which the config is compared."""
    model = dataclasses.replace(config.model, patch_size=3)
    options = config.data.options | {"image_size": 6}
    config = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, options=options))
    difference = describe(resolve(config))["difference"]
    assert difference["data.options.image_size"] == [32, 6]
    assert difference["data.options.flip"] == [False, True]


def test_the_commands_train_score_and_classify(folder, tmp_path):
    workdir = tmp_path / "run"
    words = (f"--config={CONFIG}", *(f"--{field}={value}" for field, value in flags_of(folder).items()))
    assert "images: train 32, validation 4, test 4; 4 x 4 pixels" in call("prepare", *words).stdout
    trained = call("train", *words, f"--workdir={workdir}")
    assert "images/s" in trained.stdout
    assert "; 2 classes: dark, light\n" in trained.stdout + trained.stderr
    assert "accuracy" in call("evaluate", f"--workdir={workdir}", "--split=test,validation").stdout
    assert "data: image_folder/" in call("verify", f"--workdir={workdir}").stdout
    lines = [
        line.split("\t")
        for line in call("classify", f"--workdir={workdir}", "--split=test").stdout.splitlines()
    ]
    assert [line[0] for line in lines] == ["test/0", "test/1", "test/2", "test/3"]
    assert [line[3] for line in lines] == ["dark", "dark", "light", "light"]
    accuracy = json.loads((workdir / "eval" / "test.json").read_text())["accuracy"]
    assert sum(line[1] == line[3] for line in lines) == pytest.approx(4 * accuracy)
    limited = call("classify", f"--workdir={workdir}", "--split=test", "--limit=3").stdout.splitlines()
    assert [line.split("\t") for line in limited] == lines[:3]
    image = folder / "light" / "0.png"
    images = (image, shutil.copy(image, tmp_path / "a,b.png"))
    printed = call("classify", f"--workdir={workdir}", *(f"--image={path}" for path in images)).stdout
    for line, image in zip(printed.splitlines(), images, strict=True):
        path, name, probability = line.split("\t")
        assert (path, name in ("dark", "light"), 0.5 <= float(probability) <= 1) == (str(image), True, True)
    for flags in (("--split=test", "--index=1"), (f"--image={image}",)):
        assert "attention.png" in call("visualize", f"--workdir={workdir}", *flags).stdout
    assert (workdir / "figures" / "attention.png").read_bytes().startswith(b"\x89PNG")
    for command, flags, message in (
        ("classify", (), "--image and --split are both missing; give one of them"),
        ("classify", ("--image=none.png",), "none.png is not a file; give the path of an image"),
        ("classify", ("--split=none",), "has no split 'none'; choose train, validation, test"),
        ("visualize", ("--split=test", "--index=9"), "--index is 9; it must be below 4, the size of test"),
        ("visualize", ("--sentence=x",), "the task of .* is image_classification; name a run of translation"),
        ("translate", ("--input=README.md",), "name a run of translation"),
        ("generate", ("--prompt=x",), "name a run of language_modeling"),
        ("evaluate", ("--ablate=all",), "--ablate needs a run of translation"),
        ("evaluate", ("--compare=x",), "--compare needs a run of translation"),
        ("evaluate", ("--set=decode.beam_size=2",), "--set changes decode.beam_size, which has no effect"),
    ):
        assert re.search(message, refuse(command, f"--workdir={workdir}", *flags))
