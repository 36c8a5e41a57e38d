"""The `translate` command: unusual input, flags, a terminal, and signals."""

import io
import itertools
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest

from experiments import cli, translate
from experiments.process import INTERRUPTED
from experiments.run_folder import Run
from experiments.trained_model import load_trained
from tests.support.commands import ROOT, call, environment, refuse, start
from transformer.decoding.scorer import Scorer
from transformer.decoding.translator import Translator

CLEAN = [b"one", b"two; three", b"twenty-one thousand", b"nine hundred and ninety; four", b"six; five"]
ODD = [
    b"",
    b"   ",
    b" \t ",
    b"one; two\r",  # from a file with \r\n at line ends
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
    b"twenty; " * 100,
    b"seven" * 100,
]
LINES = ["one", "two; three", "", "nine hundred"]
INPUT = "".join(f"{line}\n" for line in LINES)


@pytest.fixture(scope="module")
def translator(trained) -> Translator:
    loaded = load_trained(Run(trained))
    return Translator(loaded.model, loaded.params, loaded.tokenizer, loaded.config.decode)


@pytest.fixture(scope="module")
def best(translator) -> list[str]:
    """The translations of `LINES`."""
    return translator(LINES)


@pytest.fixture(scope="module")
def earlier(trained, tmp_path_factory):
    """The trained run before its last checkpoint: a run with the same vocabulary and other weights."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "earlier")
    shutil.rmtree(folder / "checkpoints/300")
    (folder / "result.json").unlink()
    return folder


@pytest.fixture
def files(tmp_path):
    """A folder with input files."""
    (tmp_path / "in").write_text(INPUT)
    (tmp_path / "prefixes").write_text("drei\n\n\nacht\n")
    (tmp_path / "targets").write_text("eins\nzwei; drei\n\nneun\n")
    (tmp_path / "short").write_text("a\nb\nc")
    (tmp_path / "long").write_text("\n\n\n" + "drei " * 90)
    return tmp_path


def test_odd_lines_change_neither_the_number_of_lines_nor_their_neighbors(trained, translator):
    """Odd and clean lines alternate; the last line has no line end."""
    lines = [line for pair in zip(ODD, itertools.cycle(CLEAN), strict=False) for line in pair]
    done = call("translate", f"--workdir={trained}", stdin=b"\n".join(lines))
    translations = done.stdout.split("\n")
    assert translations.pop() == ""
    assert len(translations) == len(lines)
    for line, translation in zip(lines, translations, strict=True):
        assert "\r" not in translation
        assert line.strip() or not translation
    *alone, without_line_end = translator([*(line.decode() for line in CLEAN), "one; two"])
    assert len({*alone, ""}) == len(CLEAN) + 1
    for number, translation in enumerate(translations[1::2]):
        assert translation == alone[number % len(CLEAN)]
    assert translations[6] == without_line_end
    unknown, reports = [], []
    for report in done.stderr.splitlines():
        (unknown if report.startswith("input") else reports).append(report)
    assert unknown[0] == "input, line 5: no token for U+0009; read as unknown"
    assert [report.split(" has ")[0] for report in reports] == [
        f"line {lines.index(line) + 1}" for line in ODD[-2:]
    ]
    assert all(" parts of at most 64 tokens" in report for report in reports)


def test_standard_input_is_translated_line_by_line(trained, best):
    assert call("translate", f"--workdir={trained}", stdin=INPUT.encode()).stdout.splitlines() == best


def test_files_are_read_and_written(trained, files, best):
    done = call("translate", f"--workdir={trained}", "--input=in", "--output=out", cwd=files)
    assert done.stdout == ""
    assert (files / "out").read_text().splitlines() == best


def test_n_best_writes_number_score_and_translation(trained, best):
    done = call("translate", f"--workdir={trained}", "--n_best=2", stdin=INPUT.encode())
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "2", "3", "4", "4"]
    assert [row[2] for row in rows[::2][:2]] == best[:2]
    assert float(rows[0][1]) >= float(rows[1][1])


def test_a_score_stands_before_its_translation(trained, translator):
    done = call("translate", f"--workdir={trained}", "--scores", stdin=INPUT.encode())
    score, text = done.stdout.splitlines()[0].split("\t")
    hypothesis = translator.hypotheses(LINES)[0][0]
    assert text == hypothesis.text
    assert float(score) == pytest.approx(hypothesis.score, abs=1e-3)


def test_a_translation_begins_with_its_prefix(trained, files, best):
    flags = (f"--workdir={trained}", "--input=in", "--prefix=prefixes")
    translations = call("translate", *flags, cwd=files).stdout.splitlines()
    assert translations[1:3] == best[1:3]
    assert translations[0].startswith("drei")
    assert translations[3].startswith("acht")


def log_probs_of(folder, targets):
    """The log-probabilities of translations of `LINES`, of a run alone."""
    trained = load_trained(Run(folder))
    scorer = Scorer(trained.model, trained.params, trained.tokenizer, trained.config.decode)
    return scorer.log_probs(LINES, targets)


def test_given_targets_are_scored(trained, earlier, files):
    """Scores come from the run, then from an ensemble, which averages the probabilities."""
    targets = (files / "targets").read_text().split("\n")[:-1]
    flags = (f"--workdir={trained}", "--input=in", "--targets=targets")
    rows = [json.loads(line) for line in call("translate", *flags, cwd=files).stdout.splitlines()]
    log_probs = log_probs_of(trained, targets)
    for row, expected in zip(rows, log_probs, strict=True):
        assert row["log_probs"] == pytest.approx(expected, abs=1e-4)
        assert row["log_prob"] == pytest.approx(expected.sum(), abs=1e-4)
        assert len(row["tokens"]) == len(expected)
    assert rows[0]["tokens"][-1] == "</s>"

    ensemble = call("translate", *flags, f"--ensemble={earlier}", cwd=files).stdout.splitlines()
    members = [log_probs, log_probs_of(earlier, targets)]
    for line, *log_probs in zip(ensemble, *members, strict=True):
        mean = np.log(np.mean(np.exp(np.float64(log_probs)), axis=0))
        assert json.loads(line)["log_probs"] == pytest.approx(mean, abs=1e-4)


def test_the_attention_of_each_line_is_saved(trained, files, best):
    flags = (f"--workdir={trained}", "--input=in", "--attention=maps.npz")
    assert call("translate", *flags, cwd=files).stdout.splitlines() == best
    with np.load(files / "maps.npz") as maps:
        assert {name.split("/")[0] for name in maps} == {"1", "2", "4"}  # line 3 is blank
        source, target = maps["2/source"].tolist(), maps["2/target"].tolist()
        assert "".join(source) == "\u2581two;\u2581three</s>"
        assert "".join(target).replace("\u2581", " ").strip() == best[1] + "</s>"
        assert maps["2/encoder"].shape == (1, 2, len(source), len(source))
        assert maps["2/decoder"].shape == (1, 2, len(target), len(target))
        assert maps["2/cross"].shape == (1, 2, len(target), len(source))
        np.testing.assert_allclose(maps["2/cross"].sum(axis=-1), np.ones((1, 2, len(target))), rtol=1e-5)


def test_search_settings_change_for_one_call(trained):
    """The scores change with the length penalty, even if the translations stay the same."""
    settings = ("beam_size=1", "max_output_length=2", "length_penalty=3.0")
    changes = (*(f"--set=decode.{setting}" for setting in settings), "--set=model.dtype=bfloat16")
    plain, changed = (
        call(
            "translate", f"--workdir={trained}", "--scores", *flags, stdin=INPUT.encode()
        ).stdout.splitlines()
        for flags in ((), changes)
    )
    assert changed[0].split("\t")[0] != plain[0].split("\t")[0]
    assert all(len(line.split("\t")[1].split()) <= 2 for line in changed)


def test_samples_are_reproducible(trained, best):
    flags = (f"--workdir={trained}", "--set=decode.sampling=true", "--set=decode.seed=3")
    samples = [call("translate", *flags, stdin=INPUT.encode()).stdout for _ in range(2)]
    assert samples[0] == samples[1] != INPUT
    assert samples[0].splitlines() != best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=nope"], "--input=nope: No such file or directory"),
        (["--input=/"], "--input=/: Is a directory"),
        (["--output=no/out"], "--output=no/out: No such file or directory"),
        (["--attention=no/maps.npz"], "--attention=no/maps.npz: No such file or directory"),
        (["--prefix=nope"], "--prefix=nope: No such file or directory"),
        (["--prefix=short"], "--prefix has 3 lines, but the input has 4; give one line for each input line"),
        (["--targets=short"], "--targets has 3 lines, but the input has 4; give one line for each input line"),
        (["--prefix=long"], "prefix 4 has "),
        (["--targets=in", "--n_best=2"], "--targets and --n_best cannot be used together: "),
        (["--targets=in", "--scores"], "--targets and --scores cannot be used together: "),
        (["--targets=in", "--prefix=in"], "--targets and --prefix cannot be used together: "),
        (["--targets=in", "--attention=maps"], "--targets and --attention cannot be used together: "),
        (["--ensemble={run}", "--attention=maps"], "--ensemble and --attention cannot be used together: "),
        (["--input=in", "--output=./in"], "--output and --input are the same file, ./in; name two different files"),
        (["--ensemble=nope"], "nope is not a run: config.json is missing"),
        (["--n_best=3"], "decode.beam_size is 2; it must be at least 3"),
        (["--n_best=0"], "--n_best is '0'; it must be a positive integer"),
        (["--targets=in", "--set=decode.beam_size=1"], "--set changes decode.beam_size, which has no effect "),
        (["--set=decode.sampling=true", "--set=decode.beam_size=1"], "--set changes decode.beam_size, which has no effect "),
        (["--set=model.d_model=3"], "model.d_model cannot change after training; only decode.*, "),
        (["--set=decode.beam_size"], "--set=decode.beam_size has no value; write --set=KEY=VALUE"),
        (["--set=decode.penalty=none"], "decode.penalty is 'none'; it must be one of: length, wu"),
        (["--set=model.overflow=none"], "model.overflow is 'none'; for model.positions='sinusoidal' it must be"),
        (["--config.decode.seed=1"], "unknown flag --config.decode.seed; write --set=decode.seed=1 for this command"),
    ],
)  # fmt: skip
def test_wrong_flags_give_a_one_line_error(trained, files, arguments, message):
    arguments = [argument.format(run=trained) for argument in arguments]
    line = refuse("translate", f"--workdir={trained}", *arguments, stdin=INPUT.encode(), cwd=files)
    assert line.startswith(message)
    assert (files / "in").read_text() == INPUT


def test_an_ensemble_needs_models_with_the_same_vocabulary(trained, tmp_path, monkeypatch):
    """The vocabularies are compared before the models are combined."""
    folder = shutil.copytree(trained, tmp_path / "other")

    def load_with_other_vocabulary(run, changes, task):
        loaded = load_trained(run, changes, task)
        if run.folder == folder:
            loaded.tokenizer.sha256 = "other"
        return loaded

    monkeypatch.setattr(translate, "load_trained", load_with_other_vocabulary)
    line = refuse("translate", f"--workdir={trained}", f"--ensemble={folder}", stdin=b"one\n")
    assert line == (
        f"{folder} and {trained} have different vocabularies; "
        "name runs with the same vocabulary in --ensemble"
    )


class Terminal(io.TextIOWrapper):
    """Standard input that claims to be a terminal."""

    def isatty(self):
        return True


def test_a_terminal_gets_a_prompt_after_the_first_search_is_compiled(trained, monkeypatch, capsys, best):
    """The search before the prompt has the same shape as the search for a short first line."""
    shapes, search = [], Translator.search

    def recorded(self, source, *arguments):
        shapes.append(source.shape)
        return search(self, source, *arguments)

    read, write = os.pipe()
    os.write(write, b"one\n\n")
    os.close(write)
    monkeypatch.setattr(Translator, "search", recorded)
    with Terminal(open(read, "rb"), "utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert cli.call(translate, [f"--workdir={trained}", "--n_best=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"loading {trained} ...",
        "Type one sentence per line; end with an empty line or Ctrl-D.",
    ]
    first, second = (line.split("\t") for line in lines[2:4])
    assert (first[0], first[2], second[0]) == ("en> 1", best[0], "1")
    assert lines[4] == "en> "
    assert shapes[0] == shapes[1] == (1, shapes[0][1])


def test_a_line_is_answered_before_the_next_and_ctrl_c_ends_quietly(trained, best):
    """A real process gets the signal while it waits for input."""
    with start("translate", f"--workdir={trained}") as process:
        for line, translation in zip(LINES, best, strict=True):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().decode() == translation + "\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b""
        assert (process.wait(60), process.stderr.read()) == (INTERRUPTED, b"")


@pytest.mark.slow
def test_a_line_of_a_megabyte_is_translated(trained):
    done = call("translate", f"--workdir={trained}", stdin=b"one\n" + b"twenty; " * 131_072 + b"\ntwo\n")
    assert done.stdout.count("\n") == 3
    assert done.stderr.startswith("line 2 has ")


@pytest.mark.slow
def test_everything_is_utf8_whatever_the_locale(trained, tmp_path):
    """File names, prefix, input, output and messages have characters that Latin-1 lacks."""
    (tmp_path / "人の.txt").write_text("one\nté 人\n", encoding="utf-8")
    (tmp_path / "préfixe").write_text("zwölf fünf\nfünf\n", encoding="utf-8")
    locale = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "latin-1",
        "PYTHONPATH": str(ROOT),
    }
    flags = ("--input=人の.txt", "--prefix=préfixe", "--output=ñ人.txt")
    options = {"cwd": tmp_path, "env": environment() | locale}
    with start("translate", f"--workdir={trained}", *flags, **options) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.decode().splitlines() == ["input, line 2: no token for 'é', '人'; read as unknown"]
    first, second = (tmp_path / "ñ人.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("zwölf fünf")
    assert second.startswith("fünf")
