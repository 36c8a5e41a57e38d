"""Sets of TFDS, translations and documents: two small sets that TFDS writes as array_record, and a mocked WMT 2014."""

import json
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.testing import mocking

from configs import wmt14
from tests.support.text_files import PAIRS
from transformer.config import DataConfig, ExperimentConfig, UserError, from_dict
from transformer.data import tfds_sets
from transformer.data.builders import check_data, check_kind, is_prepared, prepare, present_name, split_names
from transformer.data.corpus import Corpus
from transformer.tasks import open_task, resolve

REVIEWS = [f"  A film.\n\tIt has {number} parts.\n" for number in range(40)]
GERMAN = sorted(german for _, german in PAIRS)


class TinyTranslate(tfds.core.GeneratorBasedBuilder):
    """A small TFDS set with a registered name, variants, a version, and the splits train and dev."""

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
        for number, (english, german) in enumerate(pairs):
            yield number, {"de": german, "en": english}


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """A small TFDS set of documents with labels."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        features = {"label": tfds.features.ClassLabel(names=["bad", "good"]), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for number, text in enumerate(REVIEWS):
            yield number, {"label": number % 2, "text": text}


def tiny(folder, name="tiny_translate/de-en", target="de", **options):
    options = {"validation": "dev"} | options
    return DataConfig(name=name, target=target, data_dir=str(folder), vocab_size=60, options=options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder into which TFDS has written `TinyTranslate`."""
    folder = tmp_path_factory.mktemp("tfds")
    Corpus(tiny(folder))
    return folder


def test_a_tfds_set_is_read_by_its_name(folder):
    corpus = Corpus(tiny(folder))
    sources, targets = corpus.texts("train")
    assert sorted(zip(sources, targets, strict=True)) == sorted(PAIRS)  # TFDS shuffles the pairs
    assert len(corpus.split("train")) == 100
    assert list(corpus.split("train").source[7]) == corpus.tokenizer.encode(sources[7])
    assert corpus.name == "tiny_translate/de-en/1.2.0"
    assert len(corpus.split("validation")) == 20
    assert (corpus.folder / "tiny_translate-train.array_record-00000-of-00001").is_file()


def test_a_name_may_have_a_version(folder):
    corpus = Corpus(tiny(folder, "tiny_translate/de-en:1.2.0"))
    assert corpus.texts("dev") == Corpus(tiny(folder)).texts("dev")


def test_a_split_may_be_a_part_of_a_tfds_split(folder):
    parts = {"train": "train[:90%]", "validation": "train[90%:]", "test": "dev"}
    corpus = Corpus(tiny(folder, **parts))
    assert [len(corpus.split(split)) for split in parts] == [90, 10, 20]
    assert sorted(corpus.texts("train")[1] + corpus.texts("validation")[1]) == GERMAN
    assert corpus.name == "tiny_translate/de-en/1.2.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tiny_translate/de-fr"}, r"data.name is 'tiny_translate/de-fr'; TFDS says: BuilderConfig de-fr not found with version 1.2.0; it has de-en, offline, archive$"),
        ({"name": "tiny_translate/de-en:9.9.9"}, r"data.name is 'tiny_translate/de-en:9.9.9'; TFDS says: .*9.9.9"),
        ({"target": "fr"}, r"data.target is 'fr'; it must be a language of tiny_translate/de-en: de, en$"),
        ({"name": "wmt14_translate"}, r"data.target is 'de'; it must be a language of wmt14_translate: cs, en$"),
        ({"name": "mnist"}, r"data.name is 'mnist', which has no text; choose a set of translations or texts$"),
        ({"name": "nope:1.0"}, r"data.name is 'nope:1.0'; it must be number_words, multi30k, parallel_text, python_stdlib, text_files or a TFDS set$"),
        ({"validation": None}, r"tiny_translate/de-en has no split 'validation'; choose train, dev, or train a new run with data.options.validation set to a part of a split, such as train\[99%:\]"),
        ({"validation": "train[90%:]"}, r"data.options.train is 'train' and data.options.validation is 'train\[90%:\]'; these parts overlap"),
        ({"validation": "valid"}, r"data.options.validation is 'valid'; it must be a split of tiny_translate/de-en \(train, dev\) or a part of a split, such as train\[99%:\]"),
        ({"validation": "dev[a:]"}, r"data.options.validation is 'dev\[a:\]'; it must be a split of tiny_translate/de-en"),
        ({"name": "tiny_translate/offline"}, r"^tiny_translate/offline cannot be prepared: ConnectionError: HTTPConnectionPool\(host='example.org'\): Max retries exceeded; check the network and data.data_dir, then run the same command again$"),
        ({"name": "tiny_translate/archive"}, r"^preparing tiny_translate/archive needs TensorFlow: pip install -e '.\[prepare\]'$"),
        ({"name": "wmt14_translate/de-en"}, r"^preparing wmt14_translate/de-en needs TensorFlow: pip install -e '.\[prepare\]'$"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_used_gives_a_one_line_error(folder, monkeypatch, changes, message):
    monkeypatch.setattr(tfds_sets, "has_tensorflow", lambda: False)
    with pytest.raises(UserError, match=message) as raised:
        Corpus(tiny(folder, **changes)).split("validation")
    assert "\n" not in str(raised.value)


def test_the_texts_of_a_set_are_documents(tmp_path):
    options = {"train": "train[:90%]", "validation": "train[90%:]"}
    data = DataConfig(
        name="tiny_reviews", data_dir=str(tmp_path), vocab_size=300, byte_fallback=True, options=options
    )
    corpus = Corpus(data)
    assert corpus.columns == ("text",)
    assert corpus.name == "tiny_reviews/2.0.0"
    training, validation = corpus.texts("train")[0], corpus.texts("validation")[0]
    assert (len(training), len(validation)) == (36, 4)
    assert sorted(training + validation) == sorted(corpus.texts("test")[0]) == sorted(REVIEWS)
    split = corpus.split("validation")
    assert [corpus.tokenizer.decode(split.target[number]) for number in range(4)] == validation
    assert corpus.inexact("validation") == 0
    assert is_prepared(data, corpus.name)
    assert present_name(data) == corpus.name
    assert {*split_names(data, corpus.name)} == {"train", "test"}


def test_a_task_refuses_a_set_of_the_other_kind_before_it_is_prepared(tmp_path):
    check_kind(tiny(tmp_path), "pairs")
    check_kind(tiny(tmp_path, "tiny_reviews"), "documents")
    message = "data.name is 'tiny_reviews', a set of documents; choose a set of pairs"
    with pytest.raises(UserError, match=message):
        open_task(ExperimentConfig(data=tiny(tmp_path, "tiny_reviews")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_parts_of_a_prepared_set_are_checked(folder, tmp_path):
    check_data(tiny(folder), "pairs")
    check_data(tiny(tmp_path, test="later"), "pairs")  # its splits are unknown before it is prepared
    message = r"data.options.test is 'later'; it must be a split of tiny_translate/de-en \(train, dev\)"
    with pytest.raises(UserError, match=message):
        check_data(tiny(folder, test="later"), "pairs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lm1b", "wiki40b/en", "imdb_reviews/plain_text"])
def test_well_known_sets_of_texts_are_documents(tmp_path, name):
    check_kind(tiny(tmp_path, name), "documents")


def test_a_set_prepared_in_a_different_format_is_refused(tmp_path):
    builder = prepare(tiny(tmp_path))
    path = tmp_path / "tiny_translate" / "de-en" / "1.2.0" / "dataset_info.json"
    assert str(path.parent) == builder.data_dir
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    message = (
        "data.name is 'tiny_translate/de-en'; TFDS says: File format is already set to "
        "FileFormat.TFRECORD; it must be array_record: set data.data_dir to another folder"
    )
    with pytest.raises(UserError, match=message):
        prepare(tiny(tmp_path))


@pytest.fixture
def mocked_wmt14(tmp_path, monkeypatch):
    """A folder with wmt14_translate/de-en as TFDS prepares it, but with random text."""
    # The mock of __getitems__ is called without the `self` that it expects.
    monkeypatch.setattr(mocking, "_getitems", lambda keys, generator: [generator[key] for key in keys])
    import tensorflow_datasets.translate  # noqa: F401

    builder = tfds.builder("wmt14_translate/de-en", data_dir=str(tmp_path), file_format="array_record")
    builder.info.set_splits(
        tfds.core.SplitDict(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[150],
                num_bytes=1,
                filename_template=builder._get_filename_template(name),
            )
            for name in ("train", "validation", "test")
        )
    )
    builder.data_path.mkdir(parents=True)
    builder.info.write_to_directory(builder.data_dir)
    with tfds.testing.mock_data(num_examples=150, data_dir=str(tmp_path)):
        yield str(tmp_path)


def test_wmt14_yields_training_batches(mocked_wmt14, tmp_path):
    """Uses the smoke config. The text is random; name, languages and splits are those of the real set."""
    values = wmt14.get_config("smoke")
    values.data.data_dir = mocked_wmt14
    config = resolve(from_dict(values.to_dict()))
    task = open_task(config, tmp_path)
    assert task.corpus.name == "wmt14_translate/de-en/1.0.0"
    assert {"train", "validation", "test"} == set(task.corpus.splits)
    batch = next(task.batches(first_step=0))
    assert batch.target.tokens.shape[1] <= config.data.row_length
    assert batch.target.segment_ids.any()
