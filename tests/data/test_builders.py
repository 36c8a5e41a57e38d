"""Data sets: what is in them, and the one line for what cannot be read."""

import dataclasses
import gzip
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from transformer.config import DataConfig, UserError
from transformer.data.builders import Multi30k
from transformer.data.corpus import Corpus

ENGLISH = [f"a man and {number} dogs run" for number in range(40)]
GERMAN = [f"ein Mann und {number} Hunde rennen" for number in range(40)]


def test_number_words_never_repeats_a_list(number_words):
    corpus = Corpus(number_words)
    assert set(corpus.splits) == {"train", "validation", "test", "test_long"}
    sources = {split: corpus.texts(split)[0] for split in corpus.splits}
    assert {len(texts) for texts in sources.values()} == {300}
    everything = [text for texts in sources.values() for text in texts]
    assert len(set(everything)) == len(everything)
    assert {text.count(";") for text in sources["test"]} == {0, 1, 2, 3}
    assert {text.count(";") for text in sources["test_long"]} == {4, 5, 6, 7, 8, 9}


def test_number_words_are_translations(number_words):
    import num2words

    names = {num2words.num2words(n, lang="en"): num2words.num2words(n, lang="de") for n in range(1000)}
    checked = total = 0
    for source, target in zip(*Corpus(number_words).texts("test"), strict=True):
        left, right = source.split("; "), target.split("; ")
        assert len(left) == len(right)
        total += len(left)
        for one, other in zip(left, right, strict=True):
            if one in names:
                assert names[one] == other
                checked += 1
    assert checked > total / 3


@pytest.mark.slow
def test_held_out_lists_do_not_depend_on_the_training_set(number_words):
    fewer, more = (Corpus(dataclasses.replace(number_words, lists=lists)) for lists in (1_000, 1_100))
    assert fewer.texts("test") == more.texts("test")
    assert fewer.texts("train")[0] == more.texts("train")[0][:1_000]


def test_an_unknown_language_is_refused(data_dir):
    with pytest.raises(UserError, match="number_words: language 'xx' is not one num2words writes: .*de"):
        Corpus(DataConfig(name="number_words", target="xx", data_dir=data_dir))


def test_pieces_are_those_of_the_texts(number_words):
    corpus = Corpus(number_words)
    split = corpus.split("test")
    sources, targets = corpus.texts("test")
    assert len(split) == len(sources)
    for number in (0, 1, 150, 299):
        assert list(split.source[number]) == corpus.tokenizer.encode(sources[number])
        assert list(split.target[number]) == corpus.tokenizer.encode(targets[number])
        assert split.characters[number] == len(targets[number])
    assert split.longest == (split.source.lengths.max(), split.target.lengths.max())


def test_the_vocabulary_is_learned_from_the_training_split_alone(tmp_path):
    write(tmp_path / "valid.tsv", [f"{e}\t{g} QQQQ" for e, g in zip(ENGLISH, GERMAN, strict=True)])
    corpus = Corpus(text_config(tmp_path, validation=str(tmp_path / "valid.tsv")))
    assert "Q" not in "".join(corpus.tokenizer.names(range(corpus.tokenizer.vocab_size)))
    assert corpus.tokenizer.decode(corpus.split("validation").target[0]).endswith("\u2047 ")


def test_two_at_once_prepare_once(tmp_path):
    """The second waits for the first and finds everything there."""
    config = text_config(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(Corpus, [config, config])
    assert first.texts("train") == second.texts("train") == (ENGLISH, GERMAN)
    assert first.tokenizer.sha256 == second.tokenizer.sha256


def write(path, lines, end="\n"):
    data = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def cut_short(path):
    path.write_bytes(gzip.compress(b"a\tb\n" * 9_999)[:-20])
    return str(path)


def text_config(folder, **changes):
    train = write(folder / "train.en", ENGLISH) + "," + write(folder / "train.de.gz", GERMAN)
    values = {"name": "parallel_text", "data_dir": str(folder / "data"), "vocab_size": 60, "train": train}
    return DataConfig(**{**values, "validation": train, **changes})


@pytest.mark.parametrize("form", ["tsv", "plain", "gz"])
def test_parallel_text(tmp_path, form):
    if form == "tsv":
        train = write(tmp_path / "t.tsv", [f"{e}\t{g}" for e, g in zip(ENGLISH, GERMAN, strict=True)], "\r\n")
    else:
        end = {"plain": "", "gz": ".gz"}[form]
        train = ",".join([write(tmp_path / f"t.en{end}", ENGLISH), write(tmp_path / f"t.de{end}", GERMAN)])
    corpus = Corpus(text_config(tmp_path, train=train))
    assert corpus.texts("train") == (ENGLISH, GERMAN)


def test_only_a_newline_ends_a_line(tmp_path):
    odd = ["a\x0bb\u2028c\x85d", *ENGLISH]
    train = ",".join([write(tmp_path / "o.en", odd), write(tmp_path / "o.de", ["x", *GERMAN])])
    assert Corpus(text_config(tmp_path, train=train)).texts("train")[0] == odd


def test_changed_files_are_prepared_anew(tmp_path):
    config = text_config(tmp_path)
    Corpus(config)
    write(tmp_path / "train.en", ["another one", *ENGLISH[1:]])
    assert Corpus(config).texts("train")[0][0] == "another one"


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        (ENGLISH, GERMAN[:-1], r"short.de ends after 39 lines"),
        (ENGLISH[:-2], GERMAN, r"short.en ends after 38 lines"),
    ],
)
def test_different_line_counts_are_refused(tmp_path, english, german, message):
    train = ",".join([write(tmp_path / "short.en", english), write(tmp_path / "short.de", german)])
    with pytest.raises(UserError, match=message):
        Corpus(text_config(tmp_path, train=train, validation=train))


def test_broken_files_are_refused(tmp_path):
    (tmp_path / "latin1.tsv").write_bytes("caf\xe9\tx\n".encode("latin-1"))
    for train, message in [
        (str(tmp_path / "latin1.tsv"), r"latin1.tsv:1: not UTF-8"),
        (write(tmp_path / "three.tsv", ["a\tb", "a\tb\tc"]), r"three.tsv:2: 3 tab-separated fields"),
        (str(tmp_path / "nowhere.tsv"), r"data.train: .*nowhere.tsv \(or .gz\) is not a file"),
        (str(tmp_path), r"data.train: .* is not a file"),
        (None, r"data.train is not set; parallel_text needs it"),
        (cut_short(tmp_path / "cut.gz"), r"cut.gz: broken after line \d+: Compressed file ended"),
    ]:
        with pytest.raises(UserError, match=message):
            Corpus(text_config(tmp_path, train=train))


def test_unknown_names_are_refused(tmp_path, number_words):
    with pytest.raises(UserError, match="data.name is 'nope'; it must be number_words, multi30k"):
        Corpus(DataConfig(name="nope", data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="number_words has no split 'tets'; it has .*test_long"):
        Corpus(number_words).texts("tets")


MULTI30K = ["train", "val", "test_2016_flickr"]


def test_multi30k_from_a_folder(tmp_path):
    for name in MULTI30K:
        write(tmp_path / f"{name}.en", [f"{name} {line}" for line in ENGLISH])
        write(tmp_path / f"{name}.de.gz", GERMAN)
        write(tmp_path / f"{name}.lc.norm.tok.en.gz", [f"{name} {line} ." for line in ENGLISH])
        write(tmp_path / f"{name}.lc.norm.tok.de", GERMAN)
    config = DataConfig(
        name="multi30k", data_dir=str(tmp_path / "data"), manual_dir=str(tmp_path), vocab_size=60
    )
    plain = Corpus(config)
    assert plain.texts("test")[0][1] == "test_2016_flickr a man and 1 dogs run"
    assert plain.texts("validation")[0][0] == "val a man and 0 dogs run"
    tokenised = Corpus(dataclasses.replace(config, text="lc.norm.tok"))
    assert tokenised.texts("train")[0][0] == "train a man and 0 dogs run ."
    reverse = Corpus(dataclasses.replace(config, source="de", target="en"))
    assert reverse.texts("train")[0] == GERMAN
    with pytest.raises(UserError, match=r"data.manual_dir: .*train.fr \(or .gz\) is not a file"):
        Corpus(dataclasses.replace(config, target="fr"))


@pytest.mark.parametrize("text", ["raw", "lc.norm.tok"])
def test_multi30k_downloads(tmp_path, monkeypatch, text):
    """From a server on this machine with the repository's layout: raw/*.gz and tok/* plain."""
    for name in MULTI30K:
        for language, lines in (("en", ENGLISH), ("de", GERMAN)):
            file = f"raw/{name}.{language}.gz" if text == "raw" else f"tok/{name}.lc.norm.tok.{language}"
            path = tmp_path / "server" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, [f"{name} {line}" for line in lines])
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Multi30k, "REPOSITORY", f"http://127.0.0.1:{server.server_port}")
    try:
        config = DataConfig(name="multi30k", text=text, data_dir=str(tmp_path / "data"), vocab_size=60)
        assert Corpus(config).texts("validation")[1][0] == "val ein Mann und 0 Hunde rennen"
    finally:
        server.shutdown()
