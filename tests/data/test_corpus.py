"""Large corpora: written as a stream, whole or not at all, and mapped, not read."""

import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.data import synthesise
from transformer.config import DataConfig
from transformer.data import corpus as corpora
from transformer.data import progress as progresses
from transformer.data import records
from transformer.data.corpus import Corpus, GrowingArray
from transformer.data.progress import LogLines
from transformer.data.tokenizer import Tokenizer

PAIRS = [(f"a man and {number} dogs", f"ein Mann und {number} Hunde") for number in range(100)]


@pytest.fixture
def text(tmp_path):
    return text_config(tmp_path, PAIRS)


def text_config(folder, pairs):
    (folder / "train.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    files = {"train": str(folder / "train.tsv"), "validation": str(folder / "train.tsv")}
    return DataConfig(name="parallel_text", data_dir=str(folder / "data"), vocab_size=60, **files)


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_a_growing_array_is_the_file_that_numpy_writes(tmp_path, dtype):
    array = GrowingArray(tmp_path / "ours.npy", dtype)
    for values in ([], [1, 2, 3], range(1_000)):
        array.append(list(values))
    assert len(array) == 1_003
    array.close()
    np.save(tmp_path / "theirs.npy", np.array([1, 2, 3, *range(1_000)], dtype))
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_several_files_keep_the_order(text, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 7)
    monkeypatch.setattr(records, "SHARD", 28)
    corpus = Corpus(text)
    assert list(zip(*corpus.texts("train"), strict=True)) == PAIRS
    assert len(list(corpus.folder.glob("*-train.array_record-0000?-of-00004"))) == 4
    assert not list(corpus.folder.glob("*.partial"))
    split = corpus.split("train")
    for number in (0, 6, 7, 28, 99):
        assert list(split.source[number]) == corpus.tokenizer.encode(PAIRS[number][0])
        assert list(split.target[number]) == corpus.tokenizer.encode(PAIRS[number][1])
        assert split.characters[number] == len(PAIRS[number][1])


def test_a_split_travels_to_a_worker_by_its_name(tmp_path):
    split = Corpus(text_config(tmp_path, PAIRS * 100)).split("train")
    pickled = pickle.dumps(split)
    assert len(pickled) < 1_000
    assert isinstance(pickle.loads(pickled).source.pieces, np.memmap)
    assert list(pickle.loads(pickled).target[70]) == list(split.target[70])


def test_a_large_set_teaches_the_vocabulary_by_a_sample(text, monkeypatch, caplog):
    monkeypatch.setattr(corpora, "VOCABULARY_PAIRS", 50)
    with caplog.at_level("INFO"):
        corpus = Corpus(text)
    assert "learning 60 bpe pieces from 50 of 100 pairs, drawn at random" in caplog.text
    drawn = np.sort(np.random.default_rng(0).choice(100, 50, replace=False))
    texts = [text for number in drawn for text in PAIRS[number]]
    assert corpus.tokenizer.sha256 == Tokenizer.train(texts, "bpe", 60).sha256


def test_what_breaks_off_is_done_again(text, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 10)
    corpus, encode = Corpus(text), Tokenizer.encode_arrays

    def fail(self, texts):
        if any("55" in one for one in texts):
            raise OSError("no space left")
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_arrays", fail)
    with pytest.raises(OSError, match="no space left"):
        corpus.split("train")
    monkeypatch.setattr(Tokenizer, "encode_arrays", encode)
    assert len(corpus.split("train")) == 100


def test_lines_come_with_long_work_alone(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progresses.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO"):
        lines = LogLines(seconds=10.0)
        for done, seconds in [(0, 0), (100, 4), (200, 11), (300, 12), (400, 13)]:
            now[0] = 100.0 + seconds
            lines("tokenising train", done, 400)
        for done in (0, 10, 20):
            lines("tokenising test", done, 20)
        lines("writing train", 0, None)
        now[0] += 20
        lines("writing train", 5_000, None)
    assert caplog.messages == [
        "tokenising train: 200 of 400 pairs, 18 a second",
        "tokenising train: 400 of 400 pairs, 31 a second",
        "writing train: 5,000 pairs, 250 a second",
    ]


@pytest.mark.slow
def test_preparing_takes_as_much_memory_for_five_times_the_text(tmp_path):
    """The vocabulary's sample has its own bound; here it is the same for both."""
    code = """
        import re, sys
        from pathlib import Path
        from transformer.config import DataConfig
        from transformer.data import corpus
        corpus.VOCABULARY_PAIRS = 10_000
        folder = sys.argv[1]
        data = DataConfig(
            name="parallel_text", data_dir=f"{folder}/data", vocab_size=2_000,
            train=f"{folder}/train.en,{folder}/train.de", validation=f"{folder}/valid.en,{folder}/valid.de",
        )
        print(len(corpus.Corpus(data).split("train")))
        # Not getrusage: its peak begins with that of the process this one was forked from.
        print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
    """
    peaks = []
    for pairs in (50_000, 250_000):
        folder = tmp_path / str(pairs)
        folder.mkdir()
        synthesise.write(folder, "train", pairs, seed=1)
        synthesise.write(folder, "valid", 10, seed=2)
        command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
        # glibc gives each new thread an arena, up to a bound: growth that ends, but not within this test.
        environment = os.environ | {"MALLOC_ARENA_MAX": "2"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        prepared, peak = done.stdout.split()
        assert int(prepared) == pairs
        peaks.append(int(peak) / 1024)
    # MB. The additional text is 60 MB; as Python's strings and lists it was 250.
    assert peaks[1] - peaks[0] < 30, peaks
