"""Sets of images: splits, stored arrays, TFDS, class folders, and the batches of training."""

import dataclasses
import io
import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import ExifTags, Image

from tests.support.errors import refused
from tests.support.images import write_folder
from transformer.config import DataConfig, declarations
from transformer.data import digits as digits_module
from transformer.data import image_files, tfds_sets
from transformer.data.image_batches import ImageBatches, ImagePlan, augment, evaluation_images
from transformer.data.image_files import find_images, read_image, read_images
from transformer.data.image_sets import (
    IMAGE_SETS,
    is_prepared,
    open_images,
    prepare_images,
    present_name,
    resolve_images,
)
from transformer.data.images import channel_statistics


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A small TFDS set of images, without validation images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(names=["dark", "light"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(6)}

    def _generate_examples(self, number):
        for index in range(number):
            file = io.BytesIO()
            Image.new("L", (4, 4), 10 * (index % 20)).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, "label": index % 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two class folders of 20 images each."""
    return write_folder(tmp_path_factory.mktemp("images") / "classes")


def data_of(path, name="image_folder", **options):
    return resolve_images(DataConfig(name=name, data_dir=str(path), options=options))


def test_digits_have_a_fixed_split_with_25_images_of_each_digit_held_out(tmp_path):
    images = prepare_images(data_of(tmp_path, "digits"))
    splits = {name: images.split(name) for name in images.sizes}
    assert images.sizes == {"train": 1_297, "validation": 250, "test": 250}
    for name in ("validation", "test"):
        assert np.bincount(splits[name].labels).tolist() == [25] * 10
    pixels = np.concatenate([split.images.reshape(len(split), -1) for split in splits.values()])
    assert len(np.unique(pixels, axis=0)) == 1_797  # no image is in two splits
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert images.image_format.shape == (8, 8, 1)
    assert images.image_format.classes == tuple("0123456789")
    assert images.content[:12] == "8588a219605b"  # the split that docs/images.md measures


def test_the_default_augmentation_depends_on_the_set(tmp_path):
    def augmentation(name, **options):
        values = data_of(tmp_path, name, **options).options
        return values["crop_padding"], values["flip"]

    assert augmentation("digits") == (0, False)
    assert augmentation("mnist") == augmentation("mnist:3.0.1") == (2, False)
    assert augmentation("cifar10") == (4, True)
    assert augmentation("image_folder") == (0, False)
    assert augmentation("cifar10", crop_padding="0", flip="false") == (0, False)


def test_every_set_of_images_completes_and_checks_its_options(tmp_path):
    for name in [*IMAGE_SETS, "cifar10"]:
        data = data_of(tmp_path, name)
        assert resolve_images(data) == data
        assert "x is not an option of" in refused(data_of, tmp_path, name, x=1)
        message = refused(data_of, tmp_path, name, crop_padding=-1)
        assert message == "data.options.crop_padding is -1; it must be at least 0"
    declared = declarations(IMAGE_SETS["image_folder"].options_type)
    assert set(declared) == {"crop_padding", "flip", "folder", "image_size", "channels"}


def test_a_class_folder_holds_out_a_tenth_of_each_class(folder, tmp_path):
    data = data_of(tmp_path, folder=str(folder), image_size=6)
    images = prepare_images(data)
    assert images.sizes == {"train": 32, "validation": 4, "test": 4}
    assert images.image_format.classes == ("dark", "light")
    assert np.bincount(images.split("test").labels).tolist() == [2, 2]
    split = images.split("train")
    assert (split.images.mean(axis=(1, 2, 3)) > 125).tolist() == split.labels.astype(bool).tolist()
    assert images.image_format[2:] == channel_statistics(split.images)
    np.testing.assert_allclose(images.image_format.mean, split.images.mean(axis=(0, 1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(images.image_format.std, split.images.std(axis=(0, 1, 2)) / 255, rtol=1e-6)
    restored = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(restored.images, split.images)
    assert open_images(data, images.name).content == images.content


def test_other_files_or_another_size_are_other_data(tmp_path):
    folder = write_folder(tmp_path / "classes", num_images=3)
    data = data_of(tmp_path, folder=str(folder), image_size=6)
    names = {present_name(data), present_name(data_of(tmp_path, folder=str(folder), image_size=4))}
    assert names == {present_name(data_of(tmp_path, folder=str(folder), image_size=size)) for size in (4, 6)}
    (folder / "dark" / "0.png").rename(folder / "light" / "9.png")
    assert present_name(data) is None  # a class has two images
    (folder / "light" / "8.png").write_bytes((folder / "light" / "9.png").read_bytes())
    (folder / "light" / "9.png").rename(folder / "dark" / "0.png")
    names.add(present_name(data))
    assert len(names) == 3


def test_damaged_arrays_are_refused(folder, tmp_path):
    data = data_of(tmp_path, folder=str(folder), image_size=2)
    images = prepare_images(data)
    path = images.folder / "test.images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert f"{path} was damaged or changed" in refused(open_images, data, images.name)


def test_a_tfds_set_is_read_by_its_name_and_holds_out_validation_images(tmp_path):
    data = data_of(tmp_path, "tiny_pictures")
    images = prepare_images(data)
    assert images.sizes == {"train": 36, "validation": 4, "test": 6}
    assert images.name.startswith("tiny_pictures/1.0.0/")
    assert images.image_format.classes == ("dark", "light")
    split = images.split("train")
    assert (split.images[:, 0, 0, 0] // 10 % 2 == split.labels).all()
    assert is_prepared(data, images.name)
    halves = prepare_images(data_of(tmp_path, "tiny_pictures", train="train[:50%]", validation="train[50%:]"))
    assert halves.sizes == {"train": 20, "validation": 20, "test": 6}
    assert halves.name != images.name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nope", {}, "data.name is 'nope'; it must be digits, image_folder or a TFDS set"),
        ("imdb_reviews", {}, "data.name is 'imdb_reviews', which has no images with one class each; choose"),
        ("number_words", {}, "data.name is 'number_words', a set of texts; it must be digits, image_folder or a TFDS set"),
        ("cats_vs_dogs", {}, "data.name is 'cats_vs_dogs', whose images have different sizes; choose"),
        ("mnist", {}, "preparing mnist needs TensorFlow: pip install -e '.[prepare]'"),
        ("tiny_pictures", {"validation": "train[90%:]"}, "these parts overlap"),
        ("image_folder", {}, "data.options.folder is not set; set it to a folder with a folder per class"),
        ("image_folder", {"folder": "/none"}, "data.options.folder: /none is not a folder"),
        ("image_folder", {"folder": ""}, "data.options.folder is not set; set it to a folder with a folder per class"),
        ("image_folder", {"folder": "~nobody-here/x"}, "data.options.folder is '~nobody-here/x', but there is no such user"),
        ("image_folder", {"folder": "/x", "image_size": 5_000}, "data.options.image_size is 5000; it must be at most 4,096 pixels"),
        ("digits", {"crop_padding": 8}, "data.options.crop_padding is 8; it must be below the height and width of the images (8 x 8 pixels)"),
        ("image_folder", {"folder": "/x", "channels": 2}, "data.options.channels is 2; it must be 1 (gray) or 3 (color)"),
    ],
    ids=str,
)  # fmt: skip
def test_a_set_that_cannot_be_used_gives_a_one_line_error(tmp_path, monkeypatch, name, options, message):
    monkeypatch.setattr(tfds_sets, "has_tensorflow", lambda: False)
    error = refused(lambda: prepare_images(data_of(tmp_path, name, **options)))
    assert message in error
    assert "\n" not in error


def test_a_missing_package_is_named_with_its_extra(folder, tmp_path, monkeypatch):
    for module in (digits_module, image_files):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert refused(prepare_images, data_of(tmp_path, "digits")).endswith("pip install -e '.[images]'")
    message = refused(read_image, folder / "dark" / "0.png", (6, 6, 3))
    assert message.endswith("needs Pillow: pip install -e '.[images]'")


def test_an_image_file_is_cut_to_its_center_and_resized(tmp_path):
    """The file has 4 x 8 pixels, gray with transparency; its outer columns are white."""
    pixels = np.full((4, 8, 2), 255, np.uint8)
    pixels[:, 2:6, 0], pixels[:2, 2:6, 1] = 100, 0
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (4, 4, 3))
    np.testing.assert_array_equal(image[:2], 0)  # transparent pixels are black
    np.testing.assert_array_equal(image[2:], 100)
    assert read_image(tmp_path / "a.png", (2, 2, 1)).shape == (2, 2, 1)
    (tmp_path / "b.png").write_text("text")
    assert "b.png is not an image that Pillow can read" in refused(read_image, tmp_path / "b.png", (2, 2, 1))
    for name in ("c.png", "."):
        message = refused(read_image, tmp_path / name, (2, 2, 1))
        assert message == f"{tmp_path / name} is not a file; give the path of an image"


def test_the_upper_8_of_16_bits_are_kept_and_32_bits_are_refused(tmp_path):
    pixels = np.array([[0, 255], [256, 65_535]])
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(pixels.astype(np.uint16)).save(path)
        for channels in (1, 3):
            assert read_image(path, (2, 2, channels))[..., 0].tolist() == [[0, 0], [1, 255]]
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 65535\n" + pixels.astype(">u2").tobytes())
    assert read_image(tmp_path / "a.pgm", (2, 2, 1))[..., 0].tolist() == [[0, 0], [1, 255]]
    for dtype in (np.int32, np.float32):
        Image.fromarray(pixels.astype(dtype)).save(path)
        assert "a.tif is not an image that Pillow can read (the pixels have 32 bits" in refused(
            read_image, path, (2, 2, 1)
        )


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_orientation_of_a_photograph_is_applied(tmp_path, suffix, dtype):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned, so the image must be turned clockwise
    pixels = np.array([[0, 50, 100], [150, 200, 250]], dtype) * (256 if dtype == np.uint16 else 1)
    Image.fromarray(pixels.astype(dtype)).save(tmp_path / f"a.{suffix}", exif=exif)
    image = read_image(tmp_path / f"a.{suffix}", (3, 2, 1))
    assert image[..., 0].tolist() == [[150, 0], [200, 50], [250, 100]]


def test_rows_without_an_image_are_padding(tmp_path):
    Image.fromarray(np.full((2, 2), 9, np.uint8)).save(tmp_path / "a.png")
    batch = read_images([str(tmp_path / "a.png")], (2, 2, 1), num_rows=3)
    assert batch.ids.tolist() == [1, 0, 0]
    assert batch.images[:, 0, 0, 0].tolist() == [9, 0, 0]


def test_an_image_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((3, 7), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    message = refused(read_image, tmp_path / "a.png", (2, 2, 1))
    assert message == f"{tmp_path}/a.png has more than 20 pixels; make the image smaller"


def test_hidden_files_are_no_images_and_a_class_name_can_be_printed(tmp_path):
    folder = write_folder(tmp_path / "classes", num_images=3)
    (folder / "dark" / ".cache").mkdir()
    for name in ("._0.png", ".cache/0.png"):  # macOS and image viewers write such files
        (folder / "dark" / name).write_text("not an image")
    assert [path.name for path in find_images(folder)["dark"]] == ["0.png", "1.png", "2.png"]
    for name in (b"a\tb", b"a\nb", b"\xff"):
        (folder / "dark").rename(bad := folder / os.fsdecode(name))
        assert "; rename it to a name without control characters" in (message := refused(find_images, folder))
        assert "\n" not in message
        bad.rename(folder / "dark")


def test_an_epoch_has_every_image_once():
    plan = ImagePlan(num_images=23, batch_size=5, seed=1)
    assert (plan.steps_per_epoch, plan.num_rows) == (5, 5)
    epochs = [np.concatenate([plan.rows(5 * epoch + step) for step in range(5)]) for epoch in (0, 1)]
    for rows in epochs:
        assert sorted(rows) == list(range(23))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert {len(plan.rows(step)) for step in range(5)} == {4, 5}
    assert ImagePlan(3, 64, 0).num_rows == 3


def test_a_window_and_its_mirror_image_equal_those_cut_by_hand():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    images, offsets = np.repeat(image, 3, axis=0), np.array([[1, 1], [0, 2], [0, 2]])
    windows = augment(images, offsets, np.array([False, False, True]), padding=1)[..., 0]
    assert windows[0].tolist() == image[0, ..., 0].tolist()
    assert windows[1].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]
    assert windows[2].tolist() == [[0, 0, 0], [0, 3, 2], [0, 6, 5]]


def test_the_batches_of_processes_and_of_a_resumed_run_are_those_of_one_run(folder, tmp_path):
    """Crops and flips depend on the image and the epoch, not on the row or on earlier steps."""
    split = prepare_images(data_of(tmp_path, folder=str(folder), image_size=6)).split("train")
    plan = ImagePlan(len(split), 12, seed=5)

    def batches(*processes):
        return ImageBatches(split, plan, 9, 1, True, *processes)

    whole = batches()
    assert len(whole) == 9
    for step in (0, 7):
        parts = [batches(index, 2)[step] for index in range(2)]
        ids = np.concatenate([part.ids for part in parts])
        images = np.concatenate([part.images for part in parts])
        expected = whole[step]
        assert (
            {*ids[ids > 0].tolist()}
            == {*(plan.rows(step) + 1).tolist()}
            == {*expected.ids[expected.ids > 0].tolist()}
        )
        for number, image in zip(expected.ids, expected.images, strict=True):
            if number:
                np.testing.assert_array_equal(images[ids == number][0], image)
    plain = ImageBatches(split, plan, 9, 0, False)[0]
    np.testing.assert_array_equal(plain.images[0], split.images[plain.ids[0] - 1])
    assert (plain.images != whole[0].images).any()
    assert (whole[0].labels == plain.labels).all()


def test_evaluation_batches_have_every_image_once_and_one_shape(folder, tmp_path):
    split = prepare_images(data_of(tmp_path, folder=str(folder), image_size=6)).split("train")
    batches = list(evaluation_images(split, 12))
    ids = np.concatenate([batch.ids for batch in batches])
    assert ids[ids > 0].tolist() == list(range(1, 33))
    assert {batch.images.shape for batch in batches} == {(12, 6, 6, 3)}
    assert dataclasses.asdict(split)["labels"][5] == batches[0].labels[5]
