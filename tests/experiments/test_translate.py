"""translate on input that is hostile or careless: N lines in, N lines out, whatever is in them."""

import dataclasses
import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from experiments import lines
from experiments.runs import Run
from tests.experiments.test_commands import ROOT, SMOKE, environment
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
    given = [line for pair in zip(ODD, itertools.cycle(CLEAN), strict=False) for line in pair]
    process = start()
    out, err = process.communicate(b"\n".join(given))
    assert process.returncode == 0, err
    translations = out.split(b"\n")
    assert translations.pop() == b""
    assert len(translations) == len(given)
    for odd, translation in zip(given, translations, strict=True):
        assert b"\r" not in translation
        assert odd.strip() or not translation
    alone = [one.encode() for one in translator([line.decode() for line in CLEAN])]
    assert len({*alone, b""}) == len(CLEAN) + 1
    for number, translation in enumerate(translations[1::2]):
        assert translation == alone[number % len(CLEAN)]
    assert translations[6] == translator(["one; two"])[0].encode()
    reports = err.decode().splitlines()
    assert [report.split(" has ")[0] for report in reports] == [
        f"line {given.index(line) + 1}" for line in ODD[-2:]
    ]
    assert all(" parts of at most 64" in report for report in reports)


def test_ctrl_c_and_a_reader_that_leaves_end_quietly(start):
    """One after a first block of lines was printed, the other while it is."""
    interrupted, left = start(), start()
    for process in (interrupted, left):
        process.stdin.write(b"one\n" * lines.LINES)
        process.stdin.flush()
    assert left.stdout.readline().endswith(b"\n")
    left.stdout.close()
    for _ in range(lines.LINES):
        assert interrupted.stdout.readline().endswith(b"\n")
    interrupted.send_signal(signal.SIGINT)
    left.stdin.write(b"one\n" * lines.LINES)
    left.stdin.close()
    assert interrupted.stdout.read() == b""
    assert (interrupted.wait(60), interrupted.stderr.read()) == (130, b"")
    assert (left.wait(60), left.stderr.read()) == (0, b"")


def test_a_line_is_answered_before_the_next_one_comes(start, translator):
    process = start()
    for line in (b"one", b"two; three", b"", b"six; five"):
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().decode() == translator([line.decode()])[0] + "\n"
    assert process.communicate() == (b"", b"")


WATCHED = """
from experiments import entry, translate

search = translate.Translator.search
translate.Translator.search = lambda *given: (print("searched", given[1].shape), search(*given))[1]
entry.run(translate.main)
"""


def test_a_terminal_is_told_that_it_loads_and_what_is_compiled_is_there_before_the_prompt(folder, data_dir):
    """Each search says which shape it has: that of a first short line was searched with before."""
    master, terminal = pty.openpty()
    command = [sys.executable, "-c", WATCHED, f"--workdir={folder}", "--n_best=2"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = subprocess.Popen(command, cwd=ROOT, env=environment(data_dir), **pipes)
    os.close(terminal)

    def until_prompt():
        said = ""
        while not said.endswith("en> "):
            said += os.read(master, 1_000).decode()
        return said.splitlines()

    try:
        first = until_prompt()
        os.write(master, b"one\n")
        then = until_prompt()
        os.write(master, b"\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(master)
    title = "One sentence a line; an empty line or Ctrl-D ends."
    assert first == [f"loading {folder} ...", then[1], title, "en> "]
    assert then[1].startswith("searched (1, ")
    assert [line.split("\t")[0] for line in then] == ["one", then[1], "1", "1", "en> "]


DRIVER = """
import json, os, sys
from absl.testing import flagsaver
from experiments import entry, translate

results, said = [], os.dup(1)
for arguments in json.load(open(sys.argv[1])):
    untouched = flagsaver.save_flag_values()
    for descriptor, name in enumerate(("in", "out", "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if descriptor else 0)), descriptor)
    sys.argv = ["translate", *arguments]
    try:
        entry.run(translate.main)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        results.append([end.code or 0, open("out").read(), open("err").read()])
    flagsaver.restore_flag_values(untouched)
os.write(said, json.dumps(results).encode())
"""


def commands(folder, data_dir, tmp_path, *calls):
    """What `translate` does with some flags, one call after another in one process: status, output, errors.

    Each finds `INPUT` on standard input and as the file "in" of the folder that it is in.
    """
    (tmp_path / "in").write_text(INPUT)
    (tmp_path / "calls").write_text(json.dumps([[f"--workdir={folder}", *call] for call in calls]))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "calls"],
        cwd=tmp_path,
        env=environment(data_dir) | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


INPUT = "one\ntwo; three\n\nnine hundred\n"


@pytest.fixture(scope="module")
def other_seed(folder, data_dir):
    """A run of the same vocabulary with other weights."""
    other = folder.with_name("other_seed")
    command = [sys.executable, "-m", "experiments.train", SMOKE, f"--workdir={other}"]
    command += ["--config.train.steps=1", "--config.train.seed=1"]
    subprocess.run(command, cwd=ROOT, env=environment(data_dir), capture_output=True, check=True)
    return other


def of_run(folder, **changes):
    trained = Run(folder).load({f"decode.{field}": value for field, value in changes.items()})
    return Translator(trained.model, trained.params, trained.tokenizer, trained.config.decode)


def test_what_the_flags_do(folder, other_seed, data_dir, tmp_path, translator):
    (tmp_path / "begins").write_text("drei\n\n\nacht\n")
    (tmp_path / "targets").write_text("eins\nzwei; drei\n\nneun\n")
    calls = {
        "plain": ["--input=in", "--output=written"],
        "n best": ["--n_best=2"],
        "scores": ["--scores", "--set=decode.length_penalty=0"],
        "prefix": ["--prefix=begins"],
        "targets": ["--targets=targets", "--input=in"],
        "attention": ["--attention=maps.npz"],
        "ensemble": [f"--ensemble={other_seed}", "--targets=targets"],
        "greedy": ["--set=decode.beam_size=1", "--set=decode.max_length=2", "--set=model.dtype=bfloat16"],
        "drawn": ["--set=decode.sampling=true", "--set=decode.seed=3"],
        "again": ["--set=decode.sampling=true", "--set=decode.seed=3"],
    }
    results = commands(folder, data_dir, tmp_path, *calls.values())
    assert [(status, errors) for status, _, errors in results] == [(0, "")] * len(calls)
    out = {name: result[1] for name, result in zip(calls, results, strict=True)}
    texts = INPUT.split("\n")[:-1]
    best = translator(texts)
    assert out["plain"] == ""
    assert (tmp_path / "written").read_text() == "".join(f"{one}\n" for one in best)

    ranked = [line.split("\t") for line in out["n best"].splitlines()]
    assert [row[0] for row in ranked] == ["1", "1", "2", "2", "3", "4", "4"]
    assert [row[2] for row in ranked[::2][:2]] == best[:2]
    assert float(ranked[0][1]) >= float(ranked[1][1])

    begins = out["prefix"].splitlines()
    assert [begins[1], begins[2]] == best[1:3]
    assert begins[0].startswith("drei")
    assert begins[3].startswith("acht")

    given = [json.loads(line) for line in out["targets"].splitlines()]
    targets = ["eins", "zwei; drei", "", "neun"]
    found = translator.log_probs(texts, targets)
    for one, own in zip(given, found, strict=True):
        assert one["log_probs"] == pytest.approx(own, abs=1e-4)
        assert one["log_prob"] == pytest.approx(own.sum(), abs=1e-4)
        assert len(one["pieces"]) == len(own)
    assert given[0]["pieces"][-1] == "</s>"
    score, text = out["scores"].splitlines()[0].split("\t")  # what its pieces are is beyond doubt
    assert float(score) == pytest.approx(float(translator.log_probs(["one"], [text])[0].sum()), abs=1e-3)
    both = [found, of_run(other_seed).log_probs(texts, targets)]
    for line, *each in zip(out["ensemble"].splitlines(), *both, strict=True):
        mean = np.log(np.mean(np.exp(np.float64(each)), axis=0))
        assert json.loads(line)["log_probs"] == pytest.approx(mean, abs=1e-4)

    assert out["attention"].splitlines() == best
    with np.load(tmp_path / "maps.npz") as maps:
        assert {name.split("/")[0] for name in maps} == {"1", "2", "4"}
        source, target = maps["2/source"].tolist(), maps["2/target"].tolist()
        assert "".join(source) == "\u2581two;\u2581three</s>"
        assert "".join(target).replace("\u2581", " ").strip() == best[1] + "</s>"
        assert maps["2/encoder"].shape == (1, 2, len(source), len(source))
        assert maps["2/decoder"].shape == (1, 2, len(target), len(target))
        np.testing.assert_allclose(maps["2/cross"].sum(axis=-1), np.ones((1, 2, len(target))), rtol=1e-5)
        assert maps["2/cross"].shape[-1] == len(source)
    assert out["drawn"] == out["again"] != (tmp_path / "written").read_text()
    short = of_run(folder, beam_size=1, max_length=2)(texts)
    assert out["greedy"].splitlines() == short != best


def test_what_cannot_be_is_one_line(folder, data_dir, tmp_path):
    other = tmp_path / "other"
    command = [sys.executable, "-m", "experiments.train", SMOKE, f"--workdir={other}"]
    command += ["--config.train.steps=1", "--config.data.vocab_size=290"]
    subprocess.run(command, cwd=ROOT, env=environment(data_dir), capture_output=True, check=True)
    (tmp_path / "short").write_text("a\nb\nc")
    (tmp_path / "long").write_text("\n\n\n" + "drei " * 90)
    only = "only decode.*, model.overflow and model.dtype can be changed after training"
    cases = [
        (["--input=nope"], "--input=nope: No such file or directory"),
        (["--input=/"], "--input=/: Is a directory"),
        (["--output=no/out"], "--output=no/out: No such file or directory"),
        (["--attention=no/maps.npz"], "--attention=no/maps.npz: No such file or directory"),
        (["--prefix=nope"], "--prefix=nope: No such file or directory"),
        (["--prefix=short"], "--prefix has 3 lines, the input 4; each needs one for one"),
        (["--targets=short"], "--targets has 3 lines, the input 4; each needs one for one"),
        (["--prefix=long"], "prefix 4 has "),
        (["--targets=in", "--n_best=2"], "--targets and --n_best exclude each other: "),
        (["--targets=in", "--scores"], "--targets and --scores exclude each other: "),
        (["--targets=in", "--prefix=in"], "--targets and --prefix exclude each other: "),
        (["--targets=in", "--attention=maps"], "--targets and --attention exclude each other: "),
        ([f"--ensemble={folder}", "--attention=maps"], "--ensemble and --attention exclude each other: "),
        (["--input=in", "--output=./in"], "--output and --input are the same file, ./in"),
        (["--ensemble=nope"], "nope is not a run: it has no config.json"),
        ([f"--ensemble={other}"], f"{other} has another vocabulary than {folder}: no ensemble of both"),
        (["--n_best=3"], "decode.beam_size is 2; the 3 best need at least as many"),
        (["--n_best=0"], "flag --n_best=0: "),
        (["--set=model.d_model=3"], f"model.d_model: {only}"),
        (["--set=train.steps=3"], f"train.steps: {only}"),
        (["--set=decode.beam=3"], "unknown config key decode.beam; the nearest known one is decode.beam_size"),
        (["--set=decode.beam_size"], "--set=decode.beam_size: it must be KEY=VALUE"),
        (["--set=decode.beam_size=none"], "decode.beam_size is 'none'; it must be of type int"),
        (["--set=decode.penalty=none"], "decode.penalty is 'none'; it must be one of: length, wu"),
        (["--set=model.overflow=none"], "model.overflow is 'none'; for model.positions='sinusoidal' it must be"),
    ]  # fmt: skip
    results = commands(folder, data_dir, tmp_path, *(arguments for arguments, _ in cases))
    for (arguments, message), (status, out, errors) in zip(cases, results, strict=True):
        assert (status, out, errors.count("\n")) == (2, "", 1), (arguments, errors)
        assert errors.startswith(f"error: {message}"), arguments
    assert (tmp_path / "in").read_text() == INPUT


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
