"""Text files: accepted forms, and errors for files that cannot be read."""

import gzip

import pytest

from tests.support.text_files import ENGLISH, GERMAN, PAIRS, write_lines, write_pairs
from transformer.config import UserError
from transformer.data import text
from transformer.data.text import existing_file, fingerprint, name_hash, read_document, read_pairs


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_of_tab_separated_pairs_is_read(tmp_path, end):
    write_pairs(tmp_path / "pairs.tsv", PAIRS, end)
    assert list(read_pairs(tmp_path / "pairs.tsv")) == PAIRS


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_two_files_with_one_sentence_per_line_are_read(tmp_path, suffix):
    paths = tmp_path / f"text.en{suffix}", tmp_path / f"text.de{suffix}"
    for path, lines in zip(paths, (ENGLISH, GERMAN), strict=True):
        write_lines(path, lines)
    assert list(read_pairs(*paths)) == PAIRS


def test_a_byte_order_mark_is_dropped_at_the_start_of_a_file_only(tmp_path):
    (tmp_path / "pairs.tsv").write_bytes("\ufeffa\tb\n\ufeffc\td\n".encode())
    assert list(read_pairs(tmp_path / "pairs.tsv")) == [("a", "b"), ("\ufeffc", "d")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_without_an_end_is_refused(tmp_path, suffix):
    path = tmp_path / f"pairs.tsv{suffix}"
    write_lines(path, ["a\tb", "x" * (1 << 20)], end="\n")
    with pytest.raises(UserError, match=r":2: the line has over 1,048,576 bytes; shorten it"):
        list(read_pairs(path))


def test_only_a_newline_ends_a_line(tmp_path):
    pairs = [("a\x0bb\u2028c\x85d\re", "x"), *PAIRS]
    write_pairs(tmp_path / "pairs.tsv", pairs)
    assert list(read_pairs(tmp_path / "pairs.tsv")) == pairs


@pytest.mark.parametrize(
    ("num_english", "num_german", "message"),
    [
        (100, 99, "short.de has 99 lines, but .*short.en has 100"),
        (98, 100, "short.en has 98 lines, but .*short.de has 100"),
    ],
)
def test_files_of_different_lengths_are_refused(tmp_path, num_english, num_german, message):
    paths = tmp_path / "short.en", tmp_path / "short.de"
    write_lines(paths[0], ENGLISH[:num_english])
    write_lines(paths[1], GERMAN[:num_german])
    with pytest.raises(UserError, match=message):
        list(read_pairs(*paths))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin1.tsv", "caf\xe9\tx\n".encode("latin-1"), "latin1.tsv:1: not UTF-8"),
        ("three.tsv", b"a\tb\na\tb\tc\n", "three.tsv:2: expected 2 tab-separated fields, found 3"),
        (
            "cut.gz",
            gzip.compress(b"a\tb\n" * 9_999)[:-20],
            r"cut.gz: compressed file is damaged after line \d+: Compressed file ended",
        ),
    ],
    ids=["latin1", "three", "cut"],
)
def test_broken_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_pairs(tmp_path / name))


def test_a_file_may_be_named_without_its_gz_suffix(tmp_path):
    write_lines(tmp_path / "text.en.gz", ENGLISH)
    assert existing_file(tmp_path / "text.en", "data.options.train") == tmp_path / "text.en.gz"
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=rf"data.options.train: {path} \(or .gz\) is not a file"):
            existing_file(path, "data.options.train")


def test_a_fingerprint_depends_on_contents_and_suffix_but_not_on_names(tmp_path):
    first, second, copy = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    for path, lines in ((first, ["a"]), (second, ["b"]), (copy, ["a"])):
        write_lines(path, lines)
    assert fingerprint([first]) == fingerprint([copy])
    different = [
        fingerprint([first]),
        fingerprint([second]),
        fingerprint([first, second]),
        fingerprint([first], "x"),
    ]
    assert len(set(different)) == 4


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_document_is_read_byte_for_byte_except_for_a_byte_order_mark(tmp_path, compress):
    path = tmp_path / "book.txt"
    path.write_bytes(compress("\ufeff a\r\n\tb\u2028\ufeff\n\n".encode()))
    assert read_document(path) == " a\r\n\tb\u2028\ufeff\n\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\xff", "book.txt: not UTF-8 at byte 3; convert the file to UTF-8"),
        (gzip.compress(b"text" * 9_999)[:-20], "book.txt: compressed file is damaged: .*; download or copy"),
        (b"x" * 50_001, "book.txt has over 50,000 bytes; divide it into several files"),
        (gzip.compress(b"x" * 50_001), "book.txt has over 50,000 bytes; divide it into several files"),
    ],
    ids=["latin1", "cut", "large", "compressed"],
)
def test_a_document_that_cannot_be_read_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(text, "MAX_DOCUMENT_BYTES", 50_000)
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_document(tmp_path / "book.txt")


def test_hashes_of_names_are_spread_evenly_and_do_not_change():
    hashes = [name_hash(f"file {number}") for number in range(1_000)]
    assert name_hash("a") == pytest.approx(0.25379361)
    assert 30 < sum(value < 0.05 for value in hashes) < 70
    assert 0 <= min(hashes) < max(hashes) < 1
