"""Corpora: tokens of texts. They are prepared once, completely or not at all, and in constant memory."""

import dataclasses
import multiprocessing
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.data import synthesise
from tests.support.text_files import ENGLISH, GERMAN, PAIRS, parallel_text, write_pairs
from transformer.config import EOS, DataConfig, UserError
from transformer.data import corpus as corpora
from transformer.data import progress as progresses
from transformer.data import records
from transformer.data.corpus import Corpus
from transformer.data.progress import LogLines
from transformer.data.splits import GrowingArray, load_split, write_split
from transformer.data.tokenizer import Tokenizer


def text_config(folder, pairs=PAIRS, **options):
    train = write_pairs(folder / "train.tsv", pairs)
    return parallel_text(folder, **{"train": train, "validation": train, **options})


@pytest.fixture
def text(tmp_path):
    return text_config(tmp_path)


def test_a_split_holds_the_tokens_of_its_texts(number_words):
    corpus = Corpus(number_words)
    split = corpus.split("test")
    sources, targets = corpus.texts("test")
    assert len(split) == len(sources)
    for number in (0, 1, 150, 299):
        assert list(split.source[number]) == corpus.tokenizer.encode(sources[number])
        assert list(split.target[number]) == corpus.tokenizer.encode(targets[number])
        assert split.characters[number] == len(targets[number])
    assert list(split.lengths) == list(np.maximum(split.source.lengths, split.target.lengths))


def test_the_vocabulary_is_learned_only_from_the_training_split(tmp_path):
    unseen = write_pairs(tmp_path / "unseen.tsv", [(source, f"{target} QQQQ") for source, target in PAIRS])
    corpus = Corpus(text_config(tmp_path, validation=unseen, test=unseen))
    assert "Q" not in "".join(corpus.tokenizer.names(range(corpus.tokenizer.vocab_size)))
    assert corpus.tokenizer.decode(corpus.split("validation").target[0]).endswith("\u2047 ")


def test_an_unknown_split_is_refused(number_words):
    with pytest.raises(UserError, match="number_words has no split 'tets'; choose .*test_long"):
        Corpus(number_words).texts("tets")


def prepared_twice(tmp_path) -> tuple[Corpus, Corpus]:
    """The same text with vocabularies of 60 and of 50 tokens."""
    data = text_config(tmp_path)
    corpora = Corpus(data), Corpus(dataclasses.replace(data, vocab_size=50))
    for corpus in corpora:
        corpus.split("train")
    return corpora


def test_a_vocabulary_with_different_settings_is_refused(tmp_path):
    folder = prepared_twice(tmp_path)[0].folder / "tokens"
    shutil.rmtree(folder / "bpe-50")
    shutil.copytree(folder / "bpe-60", folder / "bpe-50")
    with pytest.raises(
        UserError,
        match=r"bpe-50 does not match the current data and config \(mismatch: settings\); delete the folder",
    ):
        _ = Corpus(dataclasses.replace(text_config(tmp_path), vocab_size=50)).tokenizer


def test_tokens_of_a_different_vocabulary_or_split_are_refused(tmp_path):
    large, small = prepared_twice(tmp_path)
    first, second = (
        corpus.folder / "tokens" / corpus.tokenizer.sha256[:16] / "en-de" for corpus in (large, small)
    )
    data = dataclasses.replace(text_config(tmp_path), vocab_size=50)
    small.split("validation")

    def refusal_after_copying(source: Path, target: Path) -> str:
        shutil.rmtree(target)
        shutil.copytree(source, target)
        with pytest.raises(UserError) as error:
            Corpus(data).split(target.name)
        return str(error.value)

    assert "does not match the current data and config (mismatch: vocabulary); " in refusal_after_copying(
        first / "train", second / "train"
    )
    shutil.rmtree(second / "train")
    Corpus(data).split("train")
    assert "does not match the current data and config (mismatch: split); " in refusal_after_copying(
        second / "train", second / "validation"
    )


def test_two_threads_prepare_the_same_text_only_once(text):
    """One thread waits for the other thread, and then uses the data that the other thread has prepared."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(Corpus, [text, text])
    assert first.texts("train") == second.texts("train") == (ENGLISH, GERMAN)
    assert first.tokenizer.sha256 == second.tokenizer.sha256


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_a_growing_array_writes_the_same_file_as_numpy(tmp_path, dtype):
    array = GrowingArray(tmp_path / "grown.npy", dtype)
    for values in ([], [1, 2, 3], range(1_000)):
        array.append(list(values))
    assert len(array) == 1_003
    array.close()
    np.save(tmp_path / "saved.npy", np.array([1, 2, 3, *range(1_000)], dtype))
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_arrays_are_wide_enough_for_large_vocabularies_and_large_splits(tmp_path, monkeypatch):
    tokenizer = Tokenizer.train(["a b"] * 3, "char", 7)
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16 + 1)
    monkeypatch.setattr(tokenizer, "encode_arrays", lambda texts: [np.array([2**16, EOS]) for _ in texts])
    write_split(tmp_path, [PAIRS], tokenizer)
    split = load_split(tmp_path)
    assert list(split.source[3]) == list(split.target[3]) == [2**16, EOS]
    assert split.source.offsets.dtype == split.target.offsets.dtype == np.int64


def test_a_split_in_several_files_keeps_its_order(text, monkeypatch):
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


def test_a_split_is_pickled_as_the_name_of_its_folder(number_words):
    split = Corpus(number_words).split("train")
    pickled = pickle.dumps(split)
    assert len(pickled) < 1_000 < split.source.tokens.nbytes
    assert isinstance(pickle.loads(pickled).source.tokens, np.memmap)
    assert list(pickle.loads(pickled).target[70]) == list(split.target[70])


def test_the_vocabulary_of_a_large_set_is_learned_from_a_sample(text, monkeypatch, caplog):
    monkeypatch.setattr(corpora, "VOCABULARY_RECORDS", 50)
    with caplog.at_level("INFO"):
        corpus = Corpus(text)
        assert corpus.tokenizer.vocab_size == 60
    assert "learning 60 bpe tokens from 50 of 100 pairs, drawn at random" in caplog.text
    drawn = np.sort(np.random.default_rng(0).choice(100, 50, replace=False))
    texts = [text for number in drawn for text in PAIRS[number]]
    assert corpus.tokenizer.sha256 == Tokenizer.train(texts, "bpe", 60).sha256


def test_tokenization_that_failed_is_repeated(text, monkeypatch):
    encode = Tokenizer.encode_arrays

    def fail_late(self, texts):
        if any("55" in text for text in texts):
            raise OSError("broken")
        return encode(self, texts)

    monkeypatch.setattr(records, "CHUNK", 10)
    corpus = Corpus(text)
    monkeypatch.setattr(Tokenizer, "encode_arrays", fail_late)
    with pytest.raises(OSError, match="broken"):
        corpus.split("train")
    monkeypatch.setattr(Tokenizer, "encode_arrays", encode)
    assert len(corpus.split("train")) == 100


def test_long_work_is_logged_and_short_work_is_not(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progresses.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO"):
        lines = LogLines(seconds=10.0)
        for done, seconds in [(0, 0), (100, 4), (200, 11), (300, 12), (400, 13)]:
            now[0] = 100.0 + seconds
            lines("tokenizing train", "pairs", done, 400)
        for done in (0, 10, 20):
            lines("tokenizing test", "pairs", done, 20)
        lines("writing train", "documents", 0, None)
        now[0] += 20
        lines("writing train", "documents", 5_000, None)
        lines("removing", "parts", 0, 9)
        now[0] += 20
        lines("removing", "parts", 5, 9)
    assert caplog.messages == [
        "tokenizing train: 200 of 400 pairs, 18 per second",
        "tokenizing train: 400 of 400 pairs, 31 per second",
        "writing train: 5,000 documents, 250 per second",
        "removing: 5 of 9 parts, 0.25 per second",
    ]


def prepare_and_measure(folder):
    """Prepares the text in a folder. Returns the number of pairs and the peak memory in MB."""
    corpora.VOCABULARY_RECORDS = 10_000  # so that the sample has the same size for both texts
    train, validation = (f"{folder}/{name}.en,{folder}/{name}.de" for name in ("train", "valid"))
    options = {"train": train, "validation": validation}
    data = DataConfig(name="parallel_text", data_dir=f"{folder}/data", vocab_size=2_000, options=options)
    num_pairs = len(Corpus(data).split("train"))
    # The peak of getrusage would include the process from which this process was forked.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]
    return num_pairs, int(peak) / 1024


@pytest.mark.slow
def test_preparing_five_times_the_text_takes_no_more_memory(tmp_path, monkeypatch):
    # glibc gives each new thread an arena of memory, up to a limit. A low limit keeps the peak steady.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    peaks = []
    for num_pairs in (50_000, 250_000):
        folder = tmp_path / str(num_pairs)
        folder.mkdir()
        synthesise.write(folder, "train", num_pairs, seed=1)
        synthesise.write(folder, "valid", 10, seed=2)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            prepared, peak = pool.apply(prepare_and_measure, (str(folder),))
        assert prepared == num_pairs
        peaks.append(peak)
    # In MB. The additional text has 60 MB; as Python strings and lists in memory it took 250 MB.
    assert peaks[1] - peaks[0] < 30, peaks


def test_tokens_of_a_read_only_data_folder_are_stored_in_the_run_folder(tmp_path, monkeypatch):
    data = text_config(tmp_path)
    expected = Corpus(data).split("train")
    tokens = next((tmp_path / "data").rglob("tokens"))
    shutil.rmtree(tokens)
    run = tmp_path / "run"
    monkeypatch.setattr(corpora, "is_writable", lambda folder: folder.is_relative_to(run))
    for _ in range(2):
        split = Corpus(data, run_folder=run).split("train")
        np.testing.assert_array_equal(split.source.tokens, expected.source.tokens)
        assert split.folder.is_relative_to(run / "tokens")
        assert not tokens.exists()
