"""The data set `text_files`: a file, a folder, or files per split."""

import gzip
import itertools
import logging

import pytest

from tests.support.text_files import text_files
from transformer.config import UserError
from transformer.data.builders import data_name, prepare, resolve_options
from transformer.data.corpus import Corpus

TEXT = "".join(f"Line {number}:\n\tsome  text\r\n" for number in range(40))


def write(path, text=TEXT):
    """Writes a text, compressed if the name of the file ends in .gz; returns the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def texts_of(data):
    corpus = Corpus(data)
    return {split: corpus.texts(split)[0] for split in corpus.splits}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_end_of_a_file_is_the_validation_split(tmp_path, suffix, caplog):
    data = text_files(tmp_path, file=write(tmp_path / f"book.txt{suffix}"))
    size = int(0.9 * len(TEXT))
    with caplog.at_level(logging.INFO):
        assert texts_of(data) == {"train": [TEXT[:size]], "validation": [TEXT[size:]]}
    assert (
        f"book.txt{suffix}: train {size:,} characters, validation {len(TEXT) - size:,} characters"
        in caplog.text
    )


def test_a_file_may_have_a_test_file(tmp_path):
    book, later = write(tmp_path / "book.txt"), write(tmp_path / "later.txt", "Later.")
    assert texts_of(text_files(tmp_path, file=book, test=later))["test"] == ["Later."]


def test_the_advice_for_a_missing_test_split_names_the_option(tmp_path):
    corpus = Corpus(text_files(tmp_path, file=write(tmp_path / "book.txt")))
    with pytest.raises(
        UserError,
        match="no split 'test'; choose train, validation, or train a new run with data.options.test set to",
    ):
        corpus.split("test")


@pytest.mark.parametrize(("num_files", "sizes"), [(2, (1, 1, 0)), (3, (1, 1, 1)), (60, (54, 3, 3))])
def test_files_of_a_folder_are_held_out(tmp_path, num_files, sizes):
    for number in range(num_files):
        write(tmp_path / "books" / f"{number % 3}" / f"{number}.txt", f"book {number}")
    write(tmp_path / "books" / "empty.txt", "")
    write(tmp_path / "books" / "notes.md")
    texts = texts_of(text_files(tmp_path, folder=str(tmp_path / "books")))
    assert tuple(len(texts.get(split, [])) for split in ("train", "validation", "test")) == sizes
    assert sorted(itertools.chain(*texts.values())) == sorted(f"book {number}" for number in range(num_files))


def test_the_contents_of_files_do_not_decide_their_splits(tmp_path):
    for number in range(20):
        write(tmp_path / "books" / f"{number}.txt", f"book {number}")
        write(tmp_path / "others" / f"{number}.txt", f"other {number}")
    books, others = (
        texts_of(text_files(tmp_path, folder=str(tmp_path / name))) for name in ("books", "others")
    )
    assert {
        split: [text.replace("book", "other") for text in texts] for split, texts in books.items()
    } == others


@pytest.mark.parametrize("pattern", ["**/*.md", "**/*md*"])
def test_a_pattern_selects_files_and_finds_compressed_ones(tmp_path, pattern):
    write(tmp_path / "books" / "a.md", "a")
    write(tmp_path / "books" / "deep" / "b.md.gz", "b")
    write(tmp_path / "books" / "both.md", "both")
    write(tmp_path / "books" / "both.md.gz", "both, compressed")
    write(tmp_path / "books" / "c.txt", "c")
    write(tmp_path / "books" / "empty.md.gz", "")
    write(tmp_path / "books" / "deep" / "b.md", "")
    write(tmp_path / "books" / ".hidden.md", "hidden")
    write(tmp_path / "books" / ".git" / "d.md", "hidden")
    texts = texts_of(text_files(tmp_path, folder=str(tmp_path / "books"), glob=pattern))
    assert sorted(itertools.chain(*texts.values())) == ["a", "b", "both"]


def test_each_split_may_be_a_file_or_a_folder(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / "train" / f"{name}.txt", name)
    validation, test = write(tmp_path / "validation.txt.gz", "v"), write(tmp_path / "test.txt", "t")
    data = text_files(tmp_path, train=str(tmp_path / "train"), validation=validation, test=test)
    assert texts_of(data) == {"train": ["a", "b"], "validation": ["v"], "test": ["t"]}


def test_the_name_changes_with_the_contents_and_with_the_splits(tmp_path):
    for name in "abc":
        write(tmp_path / "books" / f"{name}.txt", name)
    folder, held_out = str(tmp_path / "books"), write(tmp_path / "d.txt", "d")
    options = [
        {"file": f"{folder}/a.txt", "test": f"{folder}/b.txt"},
        {"train": f"{folder}/a.txt", "validation": f"{folder}/b.txt"},
        {"folder": folder},
        {"train": folder, "validation": held_out},
        {"train": folder, "validation": held_out, "glob": "[ab].txt"},
    ]
    names = [data_name(text_files(tmp_path, **given)) for given in options]
    write(tmp_path / "books" / "c.txt", "changed")
    names += [data_name(text_files(tmp_path, **given)) for given in options[2:4]]
    assert len(set(names)) == 7
    assert data_name(text_files(tmp_path, **options[0])) == names[0]


def test_the_name_changes_with_the_split_of_a_file(tmp_path):
    for path in ("start/1.txt", "start/2.txt", "3.txt", "1.txt", "end/2.txt", "end/3.txt"):
        write(tmp_path / path, path[-5:])
    options = [("start", "3.txt"), ("1.txt", "end")]
    names = [
        data_name(text_files(tmp_path, train=str(tmp_path / train), validation=str(tmp_path / validation)))
        for train, validation in options
    ]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"text_files has no text; add --config.data.options.file=FILE, or set data.options.folder or data.options.train$"),
        ({"file": "book.txt", "folder": "books"}, r"text_files: data.options.file and data.options.folder given; set exactly one"),
        ({"train": "book.txt", "validation": "book.txt"}, r"data.options.train and data.options.validation both have .*/book.txt; name different files$"),
        ({"train": "books", "validation": "books/only.txt"}, r"data.options.train and data.options.validation both have .*/only.txt; name different files$"),
        ({"file": "book.txt", "test": "book.txt"}, r"data.options.file and data.options.test both have .*/book.txt; name different files$"),
        ({"train": "book.txt"}, r"data.options.validation is not set; set it to a file or a folder"),
        ({"file": "book.txt", "validation": "book.txt"}, r"data.options.validation is '.*'; it must be None with data.options.file"),
        ({"folder": "books", "test": "book.txt"}, r"data.options.test is '.*'; it must be None with data.options.folder"),
        ({"file": "nowhere.txt"}, r"data.options.file: .*nowhere.txt \(or .gz\) is not a file"),
        ({"file": "books"}, r"data.options.file: .*books \(or .gz\) is not a file"),
        ({"folder": "book.txt"}, r"data.options.folder: .*book.txt is not a folder"),
        ({"folder": "empty"}, r"data.options.folder: .*empty has no files with text that match \*\*/\*.txt; set data.options.glob"),
        ({"folder": "books"}, r"data.options.folder: .*books has one file; give more files, or set data.options.file to it"),
        ({"folder": "books", "glob": ""}, r"data.options.glob is ''; it must be a pattern of files"),
        ({"folder": "books", "glob": "/*.txt"}, r"data.options.glob is '/\*.txt'; it must be a pattern of files"),
        ({"file": "empty.txt"}, r"data.options.file: .*empty.txt is empty; give a file that has text"),
        ({"file": "one.txt"}, r"data.options.file: .*one.txt has fewer than 2 characters; give a file"),
        ({"file": "latin1.txt"}, r"latin1.txt: not UTF-8 at byte 4; convert the file to UTF-8"),
        ({"train": "book.txt", "validation": "latin1.txt"}, r"latin1.txt: not UTF-8 at byte 4; convert the file to UTF-8"),
        ({"train": "empty.txt", "validation": "book.txt"}, r"data.options.train: .*empty.txt is empty"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_used_gives_a_one_line_error(tmp_path, options, message):
    write(tmp_path / "book.txt")
    write(tmp_path / "one.txt", "x")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "books" / "only.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    options = {name: value if name == "glob" else str(tmp_path / value) for name, value in options.items()}
    with pytest.raises(UserError, match=message) as raised:
        prepare(text_files(tmp_path, **options))
    assert "\n" not in str(raised.value)


def test_a_file_of_two_characters_is_divided(tmp_path):
    assert texts_of(text_files(tmp_path, file=write(tmp_path / "two.txt", "ab"))) == {
        "train": ["a"], "validation": ["b"]
    }  # fmt: skip


def test_options_of_one_way_are_kept_when_the_config_is_resolved(tmp_path):
    data = text_files(tmp_path, file="a.txt")
    assert resolve_options(data) == data
    assert data.options["glob"] == "**/*.txt"
