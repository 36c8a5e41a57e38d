"""translate on input that is hostile or careless: N lines in, N lines out, whatever is in them."""

import dataclasses
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys

import pytest

from experiments import lines as module
from experiments.runs import Run
from tests.experiments.test_commands import ROOT, SMOKE, environment
from transformer.config import UserError
from transformer.data.corpus import Corpus
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.translator import Translator

CLEAN = [b"one", b"two; three", b"twenty-one thousand", b"nine hundred and ninety; four", b"six; five"]
ODD = [
    b"",
    b"   ",
    b" \t ",
    b"one; two\r",  # a line of a file with \r\n ends
    b"one\rtwo",
    "one\u2028two".encode(),
    "one\x85two\u2029".encode(),
    b"one\x0btwo\x0c",
    b"one\0two\0\0",
    b"\xff\xfe\x80one\xc3",
    b"\xed\xa0\x80",  # a surrogate
    b"\xef\xbb\xbfone",
    b"</s> one <pad>",
    "\u4eba".encode() * 350_000,  # a megabyte without a space
    b"twenty; " * 300,
    b"seven" * 300,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
    """A run, trained until it tells words apart, that translates at most 64 pieces at once."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    command = [sys.executable, "-m", "experiments.train", SMOKE, f"--workdir={folder}"]
    changes = {"train.steps": 300, "train.validate_every": 300, "decode.max_source": 64, "decode.beam_size": 2, "decode.length_penalty": 1.0}  # fmt: skip
    command += [f"--config.{field}={value}" for field, value in changes.items()]
    subprocess.run(command, cwd=ROOT, env=environment(data_dir), capture_output=True, check=True)
    return folder


@pytest.fixture(scope="module")
def start(folder, data_dir):
    def start():
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-m", "experiments.translate", f"--workdir={folder}"]
        return subprocess.Popen(command, cwd=ROOT, env=environment(data_dir), **pipes)

    return start


@pytest.fixture(scope="module")
def translator(folder):
    trained = Run(folder).load()
    return Translator(trained.model, trained.params, trained.tokenizer, trained.config.decode)


def test_odd_lines_keep_the_count_and_leave_their_neighbours_alone(start, translator):
    """Odd and clean lines by turns; the last one has no line end."""
    lines = [line for pair in zip(ODD, itertools.cycle(CLEAN), strict=False) for line in pair]
    process = start()
    out, err = process.communicate(b"\n".join(lines))
    assert process.returncode == 0, err
    translations = out.split(b"\n")
    assert translations.pop() == b""
    assert len(translations) == len(lines)
    for odd, translation in zip(lines, translations, strict=True):
        assert b"\r" not in translation
        assert odd.strip() or not translation
    alone = [one.encode() for one in translator([line.decode() for line in CLEAN])]
    assert len({*alone, b""}) == len(CLEAN) + 1
    for number, translation in enumerate(translations[1::2]):
        assert translation == alone[number % len(CLEAN)]
    assert translations[6] == translator(["one; two"])[0].encode()
    reports = err.decode().splitlines()
    assert [report.split(" has ")[0] for report in reports] == [
        f"line {lines.index(line) + 1}" for line in ODD[-2:]
    ]
    assert all(" parts of at most 64" in report for report in reports)


def test_ctrl_c_and_a_reader_that_leaves_end_quietly(start):
    """One after a first block of lines was printed, the other while it is."""
    interrupted, left = start(), start()
    for process in (interrupted, left):
        process.stdin.write(b"one\n" * module.LINES)
        process.stdin.flush()
    assert left.stdout.readline().endswith(b"\n")
    left.stdout.close()
    for _ in range(module.LINES):
        assert interrupted.stdout.readline().endswith(b"\n")
    interrupted.send_signal(signal.SIGINT)
    left.stdin.write(b"one\n" * module.LINES)
    left.stdin.close()
    assert interrupted.stdout.read() == b""
    assert (interrupted.wait(60), interrupted.stderr.read()) == (130, b"")
    assert (left.wait(60), left.stderr.read()) == (0, b"")


def shout(texts, in_parts):
    """In a translator's place."""
    for text, words in enumerate(texts):
        if words == "break":
            raise UserError("broken")
        if len(words) > 64:
            in_parts(text, len(words), 2)
    return [text.upper() for text in texts]


shout.max_source = 64


def test_no_lines_no_lines():
    out = io.BytesIO()
    module.translate_lines(shout, io.BytesIO(), out)
    assert out.getvalue() == b""


def test_lines_are_counted_over_the_whole_input(capsys):
    lines, out = b"a\n" * module.LINES + b"b" * 1_065, io.BytesIO()
    module.translate_lines(shout, io.BytesIO(lines), out)
    assert out.getvalue() == lines.upper() + b"\n"
    assert capsys.readouterr().err == "line 1025 has 1,065 pieces: translated in 2 parts of at most 64\n"


def test_a_block_ends_with_what_comes_first(monkeypatch):
    monkeypatch.setattr(module, "LINES", 3)
    monkeypatch.setattr(module, "BYTES", 10)
    lines = [b"a\n", b"b\n", b"c\n", b"d\n", b"e" * 20, b"f\n"]
    assert list(module._blocks(lines)) == [lines[:3], lines[3:5], lines[5:]]


def test_what_was_translated_before_an_error_is_there():
    out = io.BytesIO()
    with pytest.raises(UserError):
        module.translate_lines(shout, [b"a\n"] * module.LINES + [b"break\n"], out)
    assert out.getvalue() == b"A\n" * module.LINES


def test_evaluate_says_how_many_sentences_were_in_parts(folder, data_dir, tmp_path):
    run = Run(shutil.copytree(folder, tmp_path / "run"))
    config = json.loads((run.folder / "config.json").read_text())
    config["decode"]["max_source"] = 16
    (run.folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={run.folder}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(data_dir), capture_output=True, text=True, check=True
    )
    data = dataclasses.replace(run.config.data, data_dir=data_dir)
    lengths = Corpus(data, Tokenizer.load(run.folder / "tokenizer.model")).split("test").source.lengths
    assert (lengths > 16).any()
    assert f"test: {(lengths > 16).sum()} of more than 16 pieces, translated in parts" in done.stdout


@pytest.mark.slow
def test_a_megabyte_in_one_line_is_translated_whole(start):
    process = start()
    out, err = process.communicate(b"one\n" + b"twenty; " * 131_072 + b"\ntwo\n")
    assert process.returncode == 0
    assert out.count(b"\n") == 3
    assert err.decode().startswith("line 2 has ")
