"""Data sets of documents: one text per record, tokens that restore it, and errors."""

import dataclasses
import pickle
import shutil
from typing import ClassVar

import numpy as np
import pytest

from tests.support.text_files import PAIRS, parallel_text, text_files, write_pairs
from transformer.config import EOS, DataConfig, UserError
from transformer.data import corpus as corpora
from transformer.data import records
from transformer.data.builders import BUILDERS, check_kind, is_prepared, present_name, split_names
from transformer.data.corpus import Corpus
from transformer.data.text_builder import DocumentBuilder
from transformer.data.tokenizer import Tokenizer

TEXTS = [f"def f_{number}(x):\n    return  x + {number}\n\n\tzwölf\r\n" for number in range(12)]


class Snippets(DocumentBuilder):
    """A data set of documents."""

    SPLITS: ClassVar = ("train", "validation")
    texts: ClassVar = {"train": TEXTS, "validation": TEXTS[:3]}

    def variant(self):
        return "all"

    def documents(self):
        return self.texts


@pytest.fixture
def snippets(tmp_path, monkeypatch):
    """The config of `Snippets`."""
    monkeypatch.setitem(BUILDERS, "snippets", Snippets)
    return DataConfig(name="snippets", data_dir=str(tmp_path), vocab_size=300, byte_fallback=True)


def test_a_document_is_a_record_with_one_text(snippets):
    corpus = Corpus(snippets)
    assert corpus.columns == ("text",)
    assert corpus.texts("validation") == (TEXTS[:3],)
    split = corpus.split("train")
    assert len(split) == len(split.sides[0].lengths) == len(TEXTS)
    assert len(split.sides) == 1
    assert split.source is split.target is split.sides[0]
    for number, text in enumerate(TEXTS):
        assert list(split.target[number]) == corpus.tokenizer.encode(text)
        assert split.target[number][-1] == EOS
        assert split.characters[number] == len(text)
    assert list(split.lengths) == list(split.target.lengths)


def test_tokens_restore_a_document_and_sum_to_its_bytes(snippets):
    corpus = Corpus(snippets)
    split = corpus.split("train")
    for number, text in enumerate(TEXTS):
        assert corpus.tokenizer.decode(split.target[number]) == text
        assert corpus.tokenizer.byte_lengths[split.target[number]].sum() == len(text.encode())
    assert corpus.inexact("train") == 0


def test_documents_and_tokens_do_not_depend_on_chunks_and_files(snippets, tmp_path, monkeypatch):
    expected = Corpus(snippets).split("train")
    monkeypatch.setattr(records, "DOCUMENT_CHUNK", 2)
    monkeypatch.setattr(records, "SHARD", 4)
    corpus = Corpus(dataclasses.replace(snippets, data_dir=str(tmp_path / "chunks")))
    assert corpus.texts("train") == (TEXTS,)
    assert len(list(corpus.folder.glob("*-train.array_record-0000?-of-00003"))) == 3
    split = corpus.split("train")
    np.testing.assert_array_equal(split.target.tokens, expected.target.tokens)
    np.testing.assert_array_equal(split.target.offsets, expected.target.offsets)
    np.testing.assert_array_equal(split.characters, expected.characters)


def test_a_split_of_documents_is_pickled_as_the_name_of_its_folder(snippets):
    split = Corpus(snippets).split("train")
    restored = pickle.loads(pickle.dumps(split))
    assert isinstance(restored.target.tokens, np.memmap)
    assert [list(restored.target[number]) for number in (0, 7)] == [
        list(split.target[0]),
        list(split.target[7]),
    ]


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_documents_that_are_not_restored_are_counted_and_logged(snippets, monkeypatch, caplog, byte_fallback):
    changed = ["x\u2581x", "x\u4eba\0"]
    monkeypatch.setattr(Snippets, "texts", {"train": TEXTS, "validation": [TEXTS[0], *changed, TEXTS[1]]})
    vocab_size = 300 if byte_fallback else 50
    data = dataclasses.replace(snippets, byte_fallback=byte_fallback, vocab_size=vocab_size)
    assert Corpus(data).inexact("train") == 0
    assert not [record for record in caplog.records if "not restored" in record.message]
    for _ in range(2):  # the number is stored
        assert Corpus(data).inexact("validation") == (1 if byte_fallback else 2)
        message = (
            f"{1 if byte_fallback else 2} of 4 documents of split 'validation' are not restored by their tokens; "
            "document 2 loses U+2581 (read as a space)"
        )
        assert message in caplog.text
        caplog.clear()


def test_a_character_without_a_token_is_named(snippets, monkeypatch, caplog):
    lost = "".join(map(chr, range(0x4EBA, 0x4EC0))) + "\0"
    monkeypatch.setattr(Snippets, "texts", {"train": TEXTS, "validation": [lost]})
    data = dataclasses.replace(snippets, byte_fallback=False, vocab_size=50)
    assert Corpus(data).inexact("validation") == 1
    assert "document 1 loses U+4EBA (no token), " in caplog.text
    assert "U+4EBE (no token) and 2 more characters" in caplog.text


def test_messages_and_progress_speak_of_documents(snippets, monkeypatch):
    reports = []
    corpus = Corpus(snippets, progress=lambda *report: reports.append(report))
    corpus.split("train")
    assert {kind for _, kind, _, _ in reports} == {"documents"}
    assert [done for activity, _, done, _ in reports if activity == "tokenizing train"] == [0, len(TEXTS)]
    monkeypatch.setattr(Snippets, "texts", {"train": TEXTS, "validation": []})
    shutil.rmtree(corpus.folder)
    with pytest.raises(
        UserError, match="split 'validation' of snippets is empty; give it at least one document$"
    ):
        Corpus(snippets)


def test_the_vocabulary_of_much_text_is_learned_from_a_sample_of_documents(snippets, monkeypatch, caplog):
    monkeypatch.setattr(corpora, "VOCABULARY_BYTES", 400)
    with caplog.at_level("INFO"):
        _ = Corpus(snippets).tokenizer
    assert "learning 300 bpe tokens from 7 of 12 documents, drawn at random" in caplog.text


def test_a_vocabulary_of_documents_is_exact_and_one_of_pairs_is_not(snippets, tmp_path):
    train = write_pairs(tmp_path / "train.tsv")
    pairs = parallel_text(tmp_path, train=train, validation=train)
    for corpus, decoded in ((Corpus(snippets), "  a"), (Corpus(pairs), "a")):
        assert corpus.tokenizer.decode(corpus.tokenizer.encode("  a")) == decoded
    assert (Corpus(snippets).folder / "tokens" / "bpe-300-exact-bytes").is_dir()
    assert (Corpus(pairs).folder / "tokens" / "bpe-60").is_dir()
    assert "inexact" not in (next(tmp_path.rglob("bpe-60/manifest.json")).read_text())


def test_damaged_documents_and_tokens_are_refused(snippets):
    corpus = Corpus(snippets)
    corpus.split("train")
    tokens = next(corpus.folder.rglob("train/text.npy"))
    tokens.write_bytes(tokens.read_bytes()[:-2] + b"\1\1")
    with pytest.raises(UserError, match=r"text.npy was damaged or changed after it was written; delete"):
        Corpus(snippets).split("train")
    (records_file,) = corpus.folder.glob("*-train.array_record-*")
    (validation,) = corpus.folder.glob("*-validation.array_record-*")
    records_file.write_bytes(validation.read_bytes())
    with pytest.raises(UserError, match=r"damaged"):
        Corpus(snippets).texts("train")


def test_a_task_refuses_the_other_kind_of_data_set(tmp_path, snippets):
    check_kind(snippets, "documents")
    check_kind(parallel_text(tmp_path), "pairs")
    with pytest.raises(UserError, match="data.name is 'snippets', a set of documents; choose a set of pairs"):
        check_kind(snippets, "pairs")
    with pytest.raises(UserError, match="'parallel_text', a set of pairs; choose a set of documents"):
        check_kind(parallel_text(tmp_path), "documents")


def test_prepared_documents_are_used_without_the_files(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(TEXTS))
    data = text_files(tmp_path, file=str(book))
    corpus = Corpus(data)
    name, content = corpus.name, corpus.content
    book.unlink()
    assert present_name(data) is None
    assert is_prepared(data, name)
    assert Corpus(data, prepared=name).content == content
    assert set(split_names(data, name)) == {"train", "validation", "test"}
    book.write_text("".join(TEXTS[1:]))
    assert present_name(data) not in (None, name)


def test_pairs_are_not_compared_with_their_decoded_tokens(tmp_path):
    train = write_pairs(tmp_path / "train.tsv", [*PAIRS, ("two  spaces", "zwei")])
    assert Corpus(parallel_text(tmp_path, train=train, validation=train)).inexact("train") == 0


def test_a_vocabulary_that_is_given_is_used(snippets, tmp_path):
    given = Tokenizer.train(TEXTS, "char", 285, byte_fallback=True, exact=True)
    corpus = Corpus(snippets, given)
    assert list(corpus.split("train").target[2]) == given.encode(TEXTS[2])
