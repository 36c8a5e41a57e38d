"""Careless and hostile input: one line that says what to mend, nothing lost, nothing left in the way.

Each in a process of its own, as a user meets it. Nothing is compiled before these refusals.
"""

import gzip
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from transformer.config import DataConfig
from transformer.data.corpus import Corpus

ROOT = Path(__file__).parent.parent.parent
ENGLISH = [f"a man and {number} dogs run" for number in range(200)]
GERMAN = [f"ein Mann und {number} Hunde rennen" for number in range(200)]


def write(path, lines):
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def text(tmp_path):
    """A folder with sound files."""
    write(tmp_path / "good.en", ENGLISH)
    write(tmp_path / "good.de", GERMAN)
    write(tmp_path / "pairs.tsv", [f"{e}\t{g}" for e, g in zip(ENGLISH, GERMAN, strict=True)])
    return tmp_path


def train(folder, *arguments, workdir="run", file_size=None):
    """Runs the command in `folder`, where files may grow to `file_size` bytes."""

    def limit():
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    return subprocess.run(
        [sys.executable, "-m", "experiments.train", f"--config={ROOT}/configs/text.py:smoke",
         f"--workdir={workdir}", "--config.data.vocab_size=100", "--config.train.steps=1", *arguments],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        | {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(folder / "data"),
           "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def refused(done):
    """The one line; before it there may be lines that say what was done."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    *before, line = done.stderr.strip().split("\n")
    assert line.startswith("error: ")
    assert not any("error" in one.lower() for one in before)
    return line.removeprefix("error: ")


def mended(folder, **changes):
    """The same data again, with what was wrong set right: there is nothing in the way."""
    assert not list((folder / "data").rglob("incomplete*"))
    assert not list((folder / "run").glob("*.model"))
    values = {"name": "parallel_text", "data_dir": str(folder / "data"), "vocab_size": 100, "held_out": 2_000}
    rules = {"min_characters": 1, "max_characters": 1_000, "max_ratio": 9.0, "deduplicate": True}
    corpus = Corpus(DataConfig(**{**values, **rules, **changes}))
    assert len(corpus.split("train")) == 180
    assert len(corpus.split("validation")) == len(corpus.split("test")) == 10


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        (ENGLISH, GERMAN[:-2], "bad.de ends after 198 lines, bad.en after 200"),
        (ENGLISH[:-1], GERMAN, "bad.en ends after 199 lines, bad.de after 200"),
        ([], [], "data.train: bad.en,bad.de has no pairs"),
        (["x" * 5_000], ["y"], "data.train: no pair is left for train: 1 pairs read; dropped 0 empty, "
         "1 longer than 1,000 characters, 0 with a ratio above 9, 0 duplicates; 0 to train on"),
        (["", "a"], ["b", " "], "data.train: no pair is left for train: 2 pairs read; dropped 2 empty, "
         "0 longer than 1,000 characters, 0 with a ratio above 9, 0 duplicates; 0 to train on"),
    ],
    ids=["shorter target", "shorter source", "empty", "all too long", "all empty"],
)  # fmt: skip
def test_text_that_cannot_be_trained_on(text, english, german, message):
    write(text / "bad.en", english)
    write(text / "bad.de", german)
    done = train(text, "--config.data.train=bad.en,bad.de")
    assert refused(done) == message
    assert done.stderr.count("\n") == 1
    write(text / "bad.en", ENGLISH)
    write(text / "bad.de", GERMAN)
    mended(text, train=f"{text}/bad.en,{text}/bad.de")


def broken(path):
    """Something wrong in a file, by its name."""
    if path.name == "cut.gz":
        write(path, ENGLISH * 50)
        path.write_bytes(path.read_bytes()[:-20])
    elif path.name == "flipped.gz":
        write(path, ENGLISH * 50)
        data = bytearray(path.read_bytes())
        data[20:24] = b"\xff" * 4
        path.write_bytes(data)
    elif path.name == "latin1.en":
        path.write_bytes("\n".join([*ENGLISH[:6], "caf\xe9"]).encode("latin-1"))
    else:
        path.mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latin1.en", "latin1.en:7: not UTF-8"),
        ("cut.gz", "cut.gz: broken after line "),
        ("flipped.gz", "flipped.gz: broken after line "),
        ("folder", "data.train: folder (or .gz) is not a file"),
    ],
)
def test_files_that_cannot_be_read(text, name, message):
    broken(text / name)
    done = train(text, f"--config.data.train={name},good.de")
    assert refused(done).startswith(message)
    assert done.stderr.count("\n") == 1
    mended(text, train=f"{text}/good.en,{text}/good.de")


def test_a_file_where_prepared_data_should_be(text):
    line = refused(train(text, "--config.data.train=pairs.tsv", "--config.data.data_dir=good.en"))
    assert line.startswith("cannot make good.en/parallel_text/")


def test_a_vocabulary_that_the_text_cannot_fill(text):
    line = refused(train(text, "--config.data.train=pairs.tsv", "--config.data.vocab_size=5000"))
    start, size = line.split("at most ")
    assert start == "data.vocab_size is 5000; the training text fills "
    mended(text, train=str(text / "pairs.tsv"), vocab_size=int(size.split(":")[0]))


def test_an_example_longer_than_the_position_table(text):
    longer = "--config.model.positions=learned", "--config.model.max_positions=3"
    line = refused(train(text, "--config.data.train=pairs.tsv", *longer))
    assert line.startswith("split 'train' has a source of ")
    assert line.endswith(" pieces, but model.positions='learned' ends at 3; raise model.max_positions")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("file_size", "place"), [(600, "run: "), (3_000, "data/parallel_text/"), (10_000, "data/parallel_text/")]
)
def test_a_full_disk_while_preparing(text, file_size, place):
    """A limit on the size of files stands for it: the run's config, the data set or its pieces go over it."""
    done = train(text, "--config.data.train=pairs.tsv", file_size=file_size)
    line = refused(done)
    assert line.removeprefix(f"{text}/").startswith(place)
    assert "the disk or quota is full; make room" in line
    mended(text, train=str(text / "pairs.tsv"))


@pytest.mark.faults
def test_a_full_disk_leaves_no_half_vocabulary_in_the_run(text):
    data = {
        "data_dir": str(text / "data"),
        "vocab_size": 100,
        "train": str(text / "pairs.tsv"),
        "held_out": 2_000,
    }
    rules = {"min_characters": 1, "max_characters": 1_000, "max_ratio": 9.0, "deduplicate": True}
    size = len(Corpus(DataConfig(name="parallel_text", **data, **rules)).tokenizer.model)
    assert refused(train(text, "--config.data.train=pairs.tsv", file_size=size - 1)).startswith(
        "run: the disk"
    )
    assert (text / "run" / "config.json").exists()
    mended(text, train=str(text / "pairs.tsv"))


@pytest.mark.faults
def test_a_full_disk_while_training_keeps_the_last_checkpoint(text):
    """Orbax reports it from its own threads; the same command then goes on."""
    arguments = ["--config.data.train=pairs.tsv", "--config.train.steps=20"]
    first = train(text, *arguments, "--config.train.steps=10")
    assert first.returncode == 0, first.stderr
    (text / "run" / "result.json").unlink()
    config = (text / "run" / "config.json").read_text()
    (text / "run" / "config.json").write_text(config.replace('"steps": 10', '"steps": 20'))
    assert refused(train(text, *arguments, file_size=40_000)) == (
        "run: the disk or quota is full; make room, then give the same command again: it goes on from the last checkpoint"
    )
    assert (text / "run" / "checkpoints" / "10").is_dir()
    again = train(text, *arguments)
    assert "going on from step 10 of 20" in again.stderr
    assert again.returncode == 0, again.stderr
