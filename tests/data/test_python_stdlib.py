"""The data set `python_stdlib`: the source files of Python's standard library."""

import itertools
import logging
import platform

import pytest

from transformer.config import DataConfig, UserError
from transformer.data.builders import data_name, prepare, resolve_options
from transformer.data.corpus import Corpus
from transformer.data.python_stdlib import PythonStdlib, is_kept, split_of


def library(tmp_path, **options):
    return resolve_options(
        DataConfig(
            name="python_stdlib",
            data_dir=str(tmp_path / "data"),
            options=options,
            vocab_size=300,
            byte_fallback=True,
        )
    )


@pytest.fixture
def folder(tmp_path):
    """A library of a few files: train ast.py and b.py, validation and test files, and files that are left out."""
    folder = tmp_path / "python3.99"
    for number in range(60):
        write(folder / "package" / f"module_{number}.py", f"def f():\n    return {number}\r\n")
    for name in ("test/a.py", "site-packages/a.py", "encodings/cp437.py", "config-3.99/a.py", "notes.txt"):
        write(folder / name, "left out")
    write(folder / "empty.py", "")
    (folder / "latin1.py").write_bytes(b"# caf\xe9")
    write(folder / "encodings" / "utf_8.py", "# an encoding")
    return folder


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def test_a_file_of_the_library_is_a_document(tmp_path, folder, caplog):
    with caplog.at_level(logging.INFO):
        corpus = Corpus(library(tmp_path, folder=str(folder)))
    texts = {split: corpus.texts(split)[0] for split in corpus.splits}
    expected = [f"def f():\n    return {number}\r\n" for number in range(60)]
    assert sorted(itertools.chain(*texts.values())) == sorted([*expected, "# an encoding"])
    assert all(texts.values())
    sizes = {split: sum(len(text.encode()) for text in texts[split]) for split in texts}
    report = "; ".join(f"{split} {len(texts[split])} files, {sizes[split]:,} bytes" for split in texts)
    assert f"standard library of {folder}: {report}" in caplog.text
    assert corpus.name.startswith("python_stdlib/python3.99.")


def test_the_name_changes_with_contents_and_paths(tmp_path, folder):
    data = library(tmp_path, folder=str(folder))
    names = [data_name(data), data_name(data)]
    (folder / "package" / "module_59.py").rename(folder / "package" / "module_590.py")  # in the same place
    names.append(data_name(data))
    write(folder / "package" / "module_590.py", "changed")
    names.append(data_name(data))
    assert names[0] == names[1]
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    "name",
    ["test/test_ast.py", "ctypes/test/a.py", "idlelib/idle_test/a.py", "lib2to3/tests/data/a.py", "site-packages/a/b.py",
     "dist-packages/a.py", "encodings/cp1252.py", "encodings/mac_roman.py", "encodings/iso8859_15.py",
     "encodings/tis_620.py", "pydoc_data/topics.py", "_sysconfigdata__linux_x86_64-linux-gnu.py",
     "config-3.11-x86_64-linux-gnu/python-config.py", "__pycache__/a.py", "stringprep.py"],
)  # fmt: skip
def test_tests_installed_packages_and_generated_tables_are_left_out(name):
    assert not is_kept(name)


@pytest.mark.parametrize(
    "name",
    ["ast.py", "encodings/utf_8.py", "turtledemo/clock.py", "unittest/mock.py", "email/contentmanager.py"],
)
def test_other_files_are_kept(name):
    assert is_kept(name)


def test_the_path_of_a_file_decides_its_split():
    splits = [split_of(f"package/module_{number}.py") for number in range(2_000)]
    assert 1_720 < splits.count("train") < 1_880
    assert 60 < splits.count("validation") < 140
    assert 60 < splits.count("test") < 140
    assert {split_of(f"encodings/{number}.py") for number in range(200)} == {"train"}


def test_a_folder_without_a_library_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            UserError, match=f"{folder} has no Python files; set data.options.folder to the library"
        ):
            prepare(library(tmp_path, folder=str(folder)))


def test_the_running_python_has_a_library(tmp_path):
    """Reads the files, but writes and tokenizes nothing."""
    builder = PythonStdlib(library(tmp_path))
    assert builder.builder_config.name.startswith(f"{platform.python_version()}.")
    documents = builder.documents()
    sizes = {split: len(texts) for split, texts in documents.items()}
    assert sizes["train"] > 400
    assert sizes["validation"] > 10
    assert sizes["test"] > 10
    assert (
        f"standard library of Python {platform.python_version()}: train " in builder.info.metadata["report"]
    )


@pytest.mark.slow
def test_tokens_restore_the_whole_library(tmp_path):
    data = DataConfig(name="python_stdlib", data_dir=str(tmp_path), vocab_size=2_000, byte_fallback=True)
    corpus = Corpus(resolve_options(data))
    assert [corpus.inexact(split) for split in corpus.splits] == [0, 0, 0]
    for split in ("validation", "test"):
        tokens = corpus.split(split).target
        num_bytes = sum(len(text.encode()) for text in corpus.texts(split)[0])
        assert corpus.tokenizer.byte_lengths[tokens.tokens].sum() == num_bytes
