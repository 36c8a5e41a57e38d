"""TFDS translation sets by name: mocked, and a small one that TFDS itself wrote as array_record."""

import json
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.testing import mocking

from configs import wmt14
from transformer.config import DataConfig, UserError, from_dict
from transformer.data import tfds_sets
from transformer.data.corpus import Corpus
from transformer.training.loop import train

PAIRS = [(f"ein Mann und {number} Hunde", f"a man and {number} dogs") for number in range(200)]


class TinyTranslate(tfds.core.GeneratorBasedBuilder):
    """A set that is like TFDS's own: registered by its name, with variants and a version; `train` and `dev`."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name) for name in ("de-en", "offline", "archive")
    ]

    def _info(self):
        features = tfds.features.Translation(languages=("de", "en"))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        if self.builder_config.name == "offline":
            raise ConnectionError("HTTPConnectionPool(host='example.org'):\nMax retries exceeded")
        if self.builder_config.name == "archive":
            import tensorflow_that_is_missing  # noqa: F401
        return {"train": self._generate_examples(PAIRS), "dev": self._generate_examples(PAIRS[:20])}

    def _generate_examples(self, pairs):
        for number, (german, english) in enumerate(pairs):
            yield number, {"de": german, "en": english}


def tiny(folder, **changes):
    values = {"name": "tiny_translate/de-en", "data_dir": str(folder), "vocab_size": 60, "validation": "dev"}
    return DataConfig(**values | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the set, written by TFDS."""
    folder = tmp_path_factory.mktemp("tfds")
    Corpus(tiny(folder))
    return folder


def test_a_tfds_set_is_read_by_its_name(folder):
    corpus = Corpus(tiny(folder))
    sources, targets = corpus.texts("train")
    assert sorted(zip(targets, sources, strict=True)) == sorted(PAIRS)  # TFDS shuffles what it writes
    assert len(corpus.split("train")) == 200
    assert list(corpus.split("train").source[7]) == corpus.tokenizer.encode(sources[7])
    assert corpus.identity == "tiny_translate/de-en/1.2.0 validation=dev"
    assert len(corpus.split("validation")) == 20
    assert (corpus.folder / "tiny_translate-train.array_record-00000-of-00001").is_file()


def test_a_version_may_be_named(folder):
    assert Corpus(tiny(folder, name="tiny_translate/de-en:1.2.0")).texts("dev") == Corpus(tiny(folder)).texts(
        "dev"
    )


def test_splits_may_be_parts_of_splits(folder):
    corpus = Corpus(tiny(folder, train="train[:90%]", validation="train[90%:]", test="dev"))
    everything = [text for split in ("train", "validation") for text in corpus.texts(split)[1]]
    assert (len(corpus.split("train")), len(corpus.split("validation")), len(corpus.split("test"))) == (
        180,
        20,
        20,
    )
    assert sorted(everything) == sorted(german for german, _ in PAIRS)
    assert corpus.identity == ("tiny_translate/de-en/1.2.0 train=train[:90%] validation=train[90%:] test=dev")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tiny_translate/de-fr"}, r"data.name is 'tiny_translate/de-fr'; TFDS says: BuilderConfig de-fr not found with version 1.2.0; it has de-en, offline, archive$"),
        ({"name": "tiny_translate/de-en:9.9.9"}, r"data.name is 'tiny_translate/de-en:9.9.9'; TFDS says: .*9.9.9"),
        ({"target": "fr"}, r"data.target is 'fr'; tiny_translate/de-en has de, en"),
        ({"name": "wmt14_translate"}, r"data.target is 'de'; wmt14_translate has cs, en$"),
        ({"name": "mnist"}, r"data.source is 'en'; mnist has no text$"),
        ({"name": "nope:1.0"}, r"data.name is 'nope:1.0'; TFDS says: Parsing builder name string nope:1.0 failed$"),
        ({"validation": None}, r"tiny_translate/de-en has no split 'validation'; it has train, dev; set data.validation to a part of one: train\[99%:\]"),
        ({"validation": "train[90%:]"}, r"data.train is 'train' and data.validation 'train\[90%:\]'; they overlap"),
        ({"validation": "valid"}, r"data.validation is 'valid'; it must be a split of tiny_translate/de-en \(train, dev\) or a part of one: train\[99%:\]"),
        ({"validation": "dev[a:]"}, r"data.validation is 'dev\[a:\]'; it must be a split of tiny_translate/de-en"),
        ({"name": "tiny_translate/offline"}, r"^tiny_translate/offline cannot be prepared: ConnectionError: HTTPConnectionPool\(host='example.org'\): Max retries exceeded$"),
        ({"name": "tiny_translate/archive"}, r"^preparing tiny_translate/archive needs TensorFlow: pip install -e '.\[prepare\]'$"),
        ({"name": "wmt14_translate/de-en"}, r"^preparing wmt14_translate/de-en needs TensorFlow: pip install -e '.\[prepare\]'$"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_one_line(folder, monkeypatch, changes, message):
    monkeypatch.setattr(tfds_sets, "_has_tensorflow", lambda: False)
    with pytest.raises(UserError, match=message) as raised:
        Corpus(tiny(folder, **changes)).split("validation")
    assert "\n" not in str(raised.value)


def test_a_set_prepared_in_another_format_is_one_line(tmp_path):
    info = Corpus(tiny(tmp_path)).folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        UserError,
        match="data.name is 'tiny_translate/de-en'; TFDS says: File format is already set to FileFormat.TFRECORD; it must be array_record: set data.data_dir to another folder",
    ):
        Corpus(tiny(tmp_path))


@pytest.fixture
def mocked_wmt14(tmp_path, monkeypatch):
    """wmt14_translate/de-en as TFDS would have left it, with random text."""
    # TFDS's mock of __getitems__ wants a `self` that Python does not pass it.
    several = lambda keys, generator: [generator[key] for key in keys]  # noqa: E731
    monkeypatch.setattr(mocking, "_getitems", several)
    import tensorflow_datasets.translate  # noqa: F401

    builder = tfds.builder("wmt14_translate/de-en", data_dir=str(tmp_path), file_format="array_record")
    lengths = {"train": 150, "validation": 150, "test": 150}
    builder.info.set_splits(
        tfds.core.SplitDict(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[length],
                num_bytes=1,
                filename_template=builder._get_filename_template(name),
            )
            for name, length in lengths.items()
        )
    )
    builder.data_path.mkdir(parents=True)
    builder.info.write_to_directory(builder.data_dir)
    with tfds.testing.mock_data(num_examples=150, data_dir=str(tmp_path)):
        yield str(tmp_path)


def test_wmt14_trains(mocked_wmt14, tmp_path):
    """The config's smoke run, on random text under the real set's name, languages and splits."""
    config = wmt14.get_config("smoke")
    config.data.data_dir = mocked_wmt14
    config.train.update(steps=2, validate_every=2)
    outcome = train(from_dict(config.to_dict()), tmp_path, Silent())
    assert outcome.finished
    corpus = Corpus(from_dict(config.to_dict()).data)
    assert corpus.identity == "wmt14_translate/de-en/1.0.0"
    assert {"train", "validation", "test"} == set(corpus.splits)


class Silent:
    def step(self, step):
        pass

    def record(self, record):
        pass
