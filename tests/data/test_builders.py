"""Data sets: options, and the contents of `number_words` and Multi30k."""

import dataclasses
import functools
import hashlib
import http.server
import tempfile
import threading
from typing import ClassVar

import num2words
import pytest

from tests.support.text_files import ENGLISH, GERMAN, write_lines
from transformer.config import DataConfig, UserError, declarations, from_dict, option
from transformer.data.builders import BUILDERS, options_type, prepare, resolve_options
from transformer.data.corpus import Corpus
from transformer.data.multi30k import CHECKSUMS, Multi30k
from transformer.data.options import Options
from transformer.data.text_builder import PairBuilder

TFDS_SET = "wmt14_translate/de-en"


@pytest.mark.parametrize("name", [*BUILDERS, TFDS_SET])
def test_options_are_completed_with_the_declared_defaults(name):
    data = resolve_options(DataConfig(name=name))
    assert data.options == dataclasses.asdict(options_type(name)())
    assert set(declarations(options_type(name))) == set(data.options)
    assert resolve_options(data) == data


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("number_words", {"lists": "300"}, {"lists": 300}),
        ("parallel_text", {"deduplicate": "true", "max_ratio": "9"}, {"deduplicate": True, "max_ratio": 9.0}),
        ("parallel_text", {"max_characters": "None", "train": "a.tsv"}, {"max_characters": None, "train": "a.tsv"}),
        (TFDS_SET, {"train": "train[:99%]", "test": "None"}, {"train": "train[:99%]", "test": None}),
    ],
)  # fmt: skip
def test_text_is_converted_to_the_type_of_the_option(name, text, options):
    resolved = resolve_options(DataConfig(name=name, options=text)).options
    assert {key: resolved[key] for key in options} == options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("number_words", {"manual_dir": "x"}, "data.options.manual_dir is not an option of number_words; its options: lists$"),
        ("multi30k", {"lists": 3}, "data.options.lists is not an option of multi30k; its options: text, manual_dir$"),
        ("number_word", {"lists": 3}, "data.options.lists is not an option of number_word \\(read as the name of a TFDS set\\); its options: train, validation, test$"),
        ("number_words", {"lists": "2.5"}, "data.options.lists is '2.5'; it must be a whole number"),
        ("number_words", {"lists": 2.5}, "data.options.lists is 2.5; it must be a whole number"),
        ("number_words", {"lists": 0}, "data.options.lists is 0; it must be at least 1"),
        ("parallel_text", {"deduplicate": "maybe"}, "data.options.deduplicate is 'maybe'; it must be true or false"),
        ("parallel_text", {"held_out": -1}, "data.options.held_out is -1; it must be at least 0"),
        ("multi30k", {"text": "lower"}, "data.options.text is 'lower'; it must be raw or lc.norm.tok"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(name, options, message):
    data = DataConfig(name=name, options=options)
    with pytest.raises(UserError, match=message):
        resolve_options(data)


@dataclasses.dataclass(frozen=True)
class CountdownOptions(Options):
    start: int = option(20, not_in_paper="a toy")


class Countdown(PairBuilder):
    """A data set of numbers and their negatives."""

    options_type: ClassVar = CountdownOptions

    def variant(self):
        return f"from_{self.options.start}"

    def pairs(self, dl_manager):
        pairs = [(f"{number}", f"-{number}") for number in range(self.options.start, 0, -1)]
        return {"train": pairs, "validation": pairs[:3]}


def test_a_new_data_set_with_an_option_needs_one_class_and_one_registry_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(BUILDERS, "countdown", Countdown)
    values = {"name": "countdown", "data_dir": str(tmp_path), "vocab_size": 16, "options": {"start": "12"}}
    data = resolve_options(from_dict({"data": values}).data)
    corpus = Corpus(data)
    assert corpus.name == "countdown/from_12/2.0.0"
    assert corpus.texts("validation") == (["12", "11", "10"], ["-12", "-11", "-10"])
    assert corpus.tokenizer.decode(corpus.split("train").target[0]) == "-12"
    with pytest.raises(
        UserError, match="data.options.lists is not an option of countdown; its options: start$"
    ):
        resolve_options(dataclasses.replace(data, options={"lists": 3}))


def test_a_preparation_leaves_no_temporary_files(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    prepare(resolve_options(DataConfig(name="number_words", data_dir=str(tmp_path), options={"lists": 3})))
    assert not list(temporary.iterdir())


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.name is 'nope'; it must be number_words, multi30k"):
        prepare(DataConfig(name="nope", data_dir=str(tmp_path)))


def test_number_words_never_repeats_a_list(number_words):
    corpus = Corpus(number_words)
    assert set(corpus.splits) == {"train", "validation", "test", "test_long"}
    sources = {split: corpus.texts(split)[0] for split in corpus.splits}
    assert {len(texts) for texts in sources.values()} == {300}
    assert len(set().union(*sources.values())) == 1_200
    assert {text.count(";") for text in sources["test"]} == {0, 1, 2, 3}
    assert {text.count(";") for text in sources["test_long"]} == {4, 5, 6, 7, 8, 9}


def test_targets_of_number_words_are_translations_of_their_sources(number_words):
    english = {num2words.num2words(number, lang="en"): number for number in range(1_000)}
    num_names = num_checked = 0
    for source, target in zip(*Corpus(number_words).texts("test"), strict=True):
        for name, translation in zip(source.split("; "), target.split("; "), strict=True):
            num_names += 1
            if name in english:
                num_checked += 1
                assert translation == num2words.num2words(english[name], lang="de")
    assert num_checked > num_names / 3


def test_held_out_lists_do_not_depend_on_the_number_of_training_lists(monkeypatch):
    monkeypatch.setattr(num2words, "num2words", lambda number, lang: f"{number} {lang}")  # num2words is slow
    fewer, more = (
        {split: list(pairs) for split, pairs in number_words_of(lists).pairs(None).items()}
        for lists in (1_000, 1_050)
    )
    assert {split: len(pairs) for split, pairs in more.items()} == {
        "test": 1_000, "validation": 1_000, "test_long": 1_000, "train": 1_050
    }  # fmt: skip
    for split in ("test", "validation", "test_long"):
        assert fewer[split] == more[split]
    assert fewer["train"] == more["train"][:1_000]


def number_words_of(lists, **changes):
    return BUILDERS["number_words"](DataConfig(name="number_words", options={"lists": lists}, **changes))


def test_a_language_without_number_names_is_refused():
    with pytest.raises(UserError, match="number_words: num2words has no language 'xx'; choose one of: .*de"):
        number_words_of(10, target="xx")


MULTI30K_FILES = ["train", "val", "test_2016_flickr"]


def multi30k(folder, text="raw", source="en", target="de"):
    options = {"manual_dir": str(folder), "text": text}
    data_dir = str(folder / "data")
    return DataConfig(name="multi30k", data_dir=data_dir, options=options, source=source, target=target)


def test_multi30k_is_read_from_a_folder(tmp_path):
    for name in MULTI30K_FILES:
        write_lines(tmp_path / f"{name}.en", [f"{name} {line}" for line in ENGLISH])
        write_lines(tmp_path / f"{name}.de.gz", GERMAN)
        write_lines(tmp_path / f"{name}.lc.norm.tok.en.gz", [f"{name} {line} ." for line in ENGLISH])
        write_lines(tmp_path / f"{name}.lc.norm.tok.de", GERMAN)

    raw = {split: list(pairs) for split, pairs in Multi30k(multi30k(tmp_path)).pairs(None).items()}
    assert raw["test"][1] == ("test_2016_flickr a man and 1 dogs", "ein Mann und 1 Hunde")
    assert raw["validation"][0] == ("val a man and 0 dogs", "ein Mann und 0 Hunde")
    tokenized = Multi30k(multi30k(tmp_path, text="lc.norm.tok")).pairs(None)
    assert next(tokenized["train"]) == ("train a man and 0 dogs .", "ein Mann und 0 Hunde")
    reverse = Multi30k(multi30k(tmp_path, source="de", target="en")).pairs(None)
    assert next(reverse["train"]) == ("ein Mann und 0 Hunde", "train a man and 0 dogs")
    with pytest.raises(UserError, match=r"data.options.manual_dir: .*train.fr \(or .gz\) is not a file"):
        Multi30k(multi30k(tmp_path, target="fr"))

    names = {Multi30k(multi30k(tmp_path, text)).variant() for text in ("raw", "lc.norm.tok")}
    write_lines(tmp_path / "val.de.gz", GERMAN[1:])
    assert Multi30k(multi30k(tmp_path)).variant() not in names
    assert len(names) == 2


@pytest.mark.parametrize("text", ["raw", "lc.norm.tok"])
def test_multi30k_is_downloaded(tmp_path, monkeypatch, text):
    """The server runs on this machine. Like the real repository, it has raw/*.gz and uncompressed tok/*."""
    for name in MULTI30K_FILES:
        for language, lines in (("en", ENGLISH), ("de", GERMAN)):
            file = f"raw/{name}.{language}.gz" if text == "raw" else f"tok/{name}.lc.norm.tok.{language}"
            path = tmp_path / "server" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_lines(path, [f"{name} {line}" for line in lines])
            monkeypatch.setitem(CHECKSUMS, file, hashlib.sha256(path.read_bytes()).hexdigest())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Multi30k, "REPOSITORY", f"http://127.0.0.1:{server.server_port}")
    data = DataConfig(name="multi30k", options={"text": text}, data_dir=str(tmp_path / "data"), vocab_size=60)
    try:
        assert Corpus(data).texts("validation")[1][0] == "val ein Mann und 0 Hunde"
        monkeypatch.setitem(CHECKSUMS, file, "0" * 64)
        elsewhere = dataclasses.replace(data, data_dir=str(tmp_path / "other"))
        with pytest.raises(
            UserError, match=f"differs from {file} in revision 2cc0f2d of multi30k; delete the file and run"
        ):
            Corpus(elsewhere)
    finally:
        server.shutdown()
        server.server_close()


class Offline:
    """A download manager without a network."""

    def download(self, urls):
        raise ConnectionError("HTTPConnectionPool(host='example.org'):\nMax retries exceeded")


def test_multi30k_without_a_network_gives_a_one_line_error():
    message = (
        r"^multi30k cannot be downloaded \(ConnectionError\); "
        "download the files of .* and set data.options.manual_dir to their folder$"
    )
    with pytest.raises(UserError, match=message):
        Multi30k(DataConfig(name="multi30k")).pairs(Offline())
