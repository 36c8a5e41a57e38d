"""Faulty text and full disks give a one-line error and lose nothing. Training works afterwards."""

import gzip
import resource
import shutil
import subprocess
import sys

import pytest

from tests.support.commands import ROOT, call, environment, refuse
from transformer.config import DataConfig
from transformer.data.builders import resolve_options
from transformer.data.corpus import Corpus

ENGLISH = [f"a man and {number} dogs run" for number in range(200)]
GERMAN = [f"ein Mann und {number} Hunde rennen" for number in range(200)]
# The options of configs/text.py.
OPTIONS = {
    "held_out": 2_000,
    "min_characters": 1,
    "max_characters": 1_000,
    "max_ratio": 9.0,
    "deduplicate": True,
}
FLAGS = (
    f"--config={ROOT}/configs/text.py:smoke",
    "--workdir=run",
    "--config.data.data_dir=data",
    "--config.data.vocab_size=100",
    "--config.train.steps=1",
)


def write(path, lines):
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path):
    """A folder with good files."""
    write(tmp_path / "good.en", ENGLISH)
    write(tmp_path / "good.de", GERMAN)
    write(tmp_path / "pairs.tsv", [f"{e}\t{g}" for e, g in zip(ENGLISH, GERMAN, strict=True)])
    return tmp_path


def refused(folder, train, *flags) -> str:
    """The error message of the command that trains on files in the folder."""
    return refuse("train", *FLAGS, f"--config.data.options.train={train}", *flags, cwd=folder)


def check_recovery(folder, train, vocab_size=100):
    """Checks that no incomplete files are left, and that good data can be prepared."""
    assert not list((folder / "data").rglob("incomplete*"))
    assert not list((folder / "run").glob("*.model"))
    corpus = Corpus(
        resolve_options(
            DataConfig(
                name="parallel_text",
                data_dir=str(folder / "data"),
                vocab_size=vocab_size,
                options={**OPTIONS, "train": train},
            )
        )
    )
    assert len(corpus.split("train")) == 180
    assert len(corpus.split("validation")) == len(corpus.split("test")) == 10


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        (ENGLISH, GERMAN[:-2], "bad.de has 198 lines, but bad.en has 200"),
        (ENGLISH[:-1], GERMAN, "bad.en has 199 lines, but bad.de has 200"),
        ([], [], "data.options.train: bad.en,bad.de has no pairs"),
        (["x" * 5_000], ["y"], "data.options.train: no pair is left for train: 1 pairs read; dropped 0 empty, "
         "1 longer than 1,000 characters, 0 with a ratio above 9, 0 duplicates; 0 to train on"),
        (["", "a"], ["b", " "], "data.options.train: no pair is left for train: 2 pairs read; dropped 2 empty, "
         "0 longer than 1,000 characters, 0 with a ratio above 9, 0 duplicates; 0 to train on"),
    ],
    ids=["shorter target", "shorter source", "empty", "all too long", "all empty"],
)  # fmt: skip
def test_text_that_cannot_be_trained_on_is_refused(folder, english, german, message):
    write(folder / "bad.en", english)
    write(folder / "bad.de", german)
    assert refused(folder, "bad.en,bad.de").startswith(message)
    write(folder / "bad.en", ENGLISH)
    write(folder / "bad.de", GERMAN)
    check_recovery(folder, f"{folder}/bad.en,{folder}/bad.de")


def damage(path):
    """Creates the faulty file or folder that the last part of `path` names."""
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
        ("cut.gz", "cut.gz: compressed file is damaged after line "),
        ("flipped.gz", "flipped.gz: compressed file is damaged after line "),
        ("folder", "data.options.train: folder (or .gz) is not a file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(folder, name, message):
    damage(folder / name)
    assert refused(folder, f"{name},good.de").startswith(message)
    check_recovery(folder, f"{folder}/good.en,{folder}/good.de")


def test_a_missing_file_is_refused(folder):
    assert refused(folder, "no.tsv").startswith("data.options.train: no.tsv (or .gz) is not a file")


def test_a_file_in_place_of_the_data_folder_is_refused(folder):
    line = refused(folder, "pairs.tsv", "--config.data.data_dir=good.en")
    assert line.startswith("cannot create good.en/parallel_text/")


def test_a_vocabulary_that_is_too_large_for_the_text_is_refused(folder):
    line = refused(folder, "pairs.tsv", "--config.data.vocab_size=5000")
    start, size = line.split("at most ")
    assert start.startswith("data.vocab_size is 5000, but ")
    check_recovery(folder, str(folder / "pairs.tsv"), vocab_size=int(size.split(":")[0].split()[0]))


def test_a_sentence_longer_than_the_position_table_is_refused(folder):
    longer = ("--config.model.positions=learned", "--config.model.max_positions=3")
    line = refused(folder, "pairs.tsv", *longer)
    assert " of split 'train' has a source of " in line
    assert line.endswith(
        " tokens, but model.positions='learned' has only 3 positions; increase model.max_positions"
    )


@pytest.mark.parametrize(
    ("config", "option"), [("text", "train"), ("text", "test"), ("multi30k", "manual_dir")]
)
def test_an_address_is_refused_where_a_path_belongs(folder, config, option):
    field = f"data.options.{option}"
    flags = [f"--config={ROOT}/configs/{config}.py:smoke", f"--config.{field}=gs://a/b"]
    if option == "test":
        flags.append("--config.data.options.train=pairs.tsv")
    line = refuse("train", *flags, "--workdir=run", cwd=folder)
    assert line == f"{field} is 'gs://a/b'; it must be a path on this machine"


@pytest.mark.slow
def test_a_path_may_contain_a_comma(folder):
    """A comma usually separates the files of the two languages."""
    shutil.copy(folder / "pairs.tsv", folder / "a,b.tsv")
    call("train", *FLAGS, "--config.data.options.train=a,b.tsv", "--config.data.data_dir=c,d", cwd=folder)
    call("evaluate", "--workdir=run", cwd=folder)
    (folder / "run").rename(folder / "r,s")
    done = call("evaluate", "--workdir=r,s", "--compare=r,s", cwd=folder)
    assert "r,s" in done.stdout
    done = call("translate", "--workdir=r,s", "--ensemble=r,s", cwd=folder, stdin=b"a man\n")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_validation_line_that_needs_too_much_memory_is_refused_by_its_number(folder, side):
    """Sinusoidal positions have no end."""
    lines = ["a man and 5 dogs run\tein Mann und 5 Hunde rennen"] * 3
    long = "dogs " * 9_000
    lines[1] = f"{long}\tein Mann" if side == "source" else f"a man\t{long}"
    write(folder / "validation.tsv", lines)
    given = "--config.data.options.validation=validation.tsv"
    line = refused(folder, "pairs.tsv", given, "--config.decode.batch_tokens=1024")
    assert line.startswith(f"pair 2 of split 'validation' has a {side} of ")
    assert line.endswith(
        " tokens, but data.row_length and decode.batch_tokens allow 1,024; remove the pair, or increase "
        "decode.batch_tokens"
    )
    assert not (folder / "run/checkpoints").exists()


# Runs the command with a limit on the size of each file, in bytes. The limit simulates a full disk.
LIMITED = """
import resource, runpy, sys

size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def train_with_limit(folder, *flags, file_size=resource.RLIM_INFINITY) -> subprocess.CompletedProcess:
    """Trains in a real process, whose files may grow to `file_size` bytes."""
    command = [sys.executable, "-c", LIMITED, str(file_size), *FLAGS, "--config.data.options.train=pairs.tsv"]
    # The limit would also cut the files of the shared compilation cache.
    env = environment() | {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    return subprocess.run(
        [*command, *flags], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def message_of(done) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().split("\n")[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("file_size", "place"), [(600, "run: "), (3_000, "data/parallel_text/"), (10_000, "data/parallel_text/")]
)
def test_a_full_disk_during_preparation_gives_a_one_line_error(folder, file_size, place):
    """The limits are too low for the config of the run, the data set and the tokens, in this order."""
    line = message_of(train_with_limit(folder, file_size=file_size))
    assert line.removeprefix(f"{folder}/").startswith(place)
    assert "the disk or quota is full; free some space" in line
    check_recovery(folder, str(folder / "pairs.tsv"))


@pytest.mark.faults
def test_a_full_disk_leaves_no_partial_vocabulary_in_the_run(folder):
    """The limit is high enough for the config, but not for the vocabulary."""
    options = {**OPTIONS, "train": str(folder / "pairs.tsv")}
    data = DataConfig(name="parallel_text", data_dir=str(folder / "data"), vocab_size=200, options=options)
    size = len(Corpus(resolve_options(data)).tokenizer.model)
    line = message_of(train_with_limit(folder, "--config.data.vocab_size=200", file_size=size - 1))
    assert line.startswith("run: the disk")
    assert (folder / "run" / "config.json").exists()
    check_recovery(folder, str(folder / "pairs.tsv"), vocab_size=200)


@pytest.mark.faults
def test_a_full_disk_during_training_keeps_the_last_checkpoint(folder):
    """Threads of Orbax report the full disk. The same command then resumes the run."""
    steps = "--config.train.steps=20"
    first = train_with_limit(folder, steps)
    assert first.returncode == 0, first.stderr
    (folder / "run" / "result.json").unlink()
    shutil.rmtree(folder / "run" / "checkpoints" / "20")  # as if the run had ended earlier
    line = message_of(train_with_limit(folder, steps, file_size=40_000))
    assert line.startswith("run: the disk or quota is full; free some space")
    assert line.endswith("run the same command again to resume from the last checkpoint")
    assert (folder / "run" / "checkpoints" / "10").is_dir()
    again = train_with_limit(folder, steps)
    assert "resuming from step 10" in again.stderr
    assert again.returncode == 0, again.stderr
    assert (folder / "run" / "checkpoints" / "20").is_dir()
