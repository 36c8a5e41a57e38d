"""Each command, as a user types it, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import entry
from experiments.runs import Run

ROOT = Path(__file__).parent.parent.parent
SMOKE = "--config=configs/number_words.py:smoke"


def environment(data_dir):
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    cache = str(Path(data_dir).parent / "xla")
    return kept | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "TFDS_DATA_DIR": data_dir,
        "JAX_COMPILATION_CACHE_DIR": cache,
    }


@pytest.fixture(scope="module")
def run(data_dir):
    def run(verb, *arguments, status=0, **kwargs):
        command = [sys.executable, "-m", f"experiments.{verb}", *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(data_dir),
            capture_output=True,
            text=True,
            check=False,
            **kwargs,
        )
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = run("train", SMOKE, f"--workdir={folder}")
    assert "step 20" in done.stdout
    return folder


def test_train_leaves_what_the_readme_says(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json",
        "tokenizer.model",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "result.json",
    }
    result = json.loads((trained / "result.json").read_text())
    assert (result["status"], result["step"]) == ("done", 20)
    assert result["versions"]["jax"]
    assert len(result["params_sha256"]) == 64


def test_train_again_says_that_it_is_done(run, trained):
    assert "trained already: 20 steps" in run("train", f"--workdir={trained}").stdout
    assert "trained already: 20 steps" in run("train", SMOKE, f"--workdir={trained}").stdout


def test_translate_gives_a_line_for_a_line(run, trained):
    done = run("translate", f"--workdir={trained}", input="one; two\n\n\u2028three\nno newline at the end")
    lines = done.stdout.split("\n")
    assert len(lines) == 5
    assert lines[1] == ""
    assert lines[4] == ""


def test_visualize_draws(run, trained):
    done = run("visualize", f"--workdir={trained}", "--sentence=one; two")
    for line in done.stdout.split():
        assert Path(line).read_bytes().startswith(b"\x89PNG")
    assert len(done.stdout.split()) == 2


def test_launch_runs_what_is_missing_and_nothing_else(run, tmp_path):
    arguments = ("--sweep=configs/sweeps/positions.py:smoke", f"--root={tmp_path}", "--seeds=1", "--jobs=2")
    first = run("launch", *arguments, "--set=train.steps=10")
    assert "2 runs, 0 done, 2 to do" in first.stdout
    results = sorted(tmp_path.glob("*/0-*/result.json"))
    assert len(results) == 2
    table = (tmp_path / "report" / "table.md").read_text()
    assert table in first.stdout
    written = [path.stat().st_mtime_ns for path in results]
    (next(tmp_path.glob("learned/0-*")) / "eval" / "test.json").unlink()
    second = run("launch", *arguments, "--set=train.steps=10")
    assert "2 runs, 1 done, 1 to do" in second.stdout
    assert [path.stat().st_mtime_ns for path in results] == written
    assert (tmp_path / "report" / "table.md").read_text() == table
    assert table in run("report", f"--root={tmp_path}").stdout
    third = refuse(run, "launch", *arguments, "--set=train.steps=11")
    assert (
        "holds this study with other settings: train.steps is 10 there, 11 here; name another --root" in third
    )
    a_run = results[0].parent
    line = refuse(run, "launch", *arguments[:1], f"--root={a_run}")
    assert line == f"error: {a_run} is a run, not a study; name another --root"


def test_an_interrupted_study_says_so_and_goes_on(tmp_path, data_dir):
    command = [sys.executable, "-m", "experiments.launch", "--sweep=configs/sweeps/positions.py:smoke",
               f"--root={tmp_path}", "--seeds=1", "--set=train.steps=100000"]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(data_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any("step 10 " in log.read_text() for log in tmp_path.glob("*/*/log.txt")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, "stopping: the runs at work save first\n")
    assert output.endswith("interrupted; the same command goes on\n")
    (result,) = tmp_path.glob("*/*/result.json")
    assert json.loads(result.read_text())["status"] == "preempted"


def test_sigterm_saves_and_the_next_call_goes_on(tmp_path, data_dir):
    command = [sys.executable, "-m", "experiments.train", SMOKE, f"--workdir={tmp_path}", "--config.train.steps=100000",
               "--config.train.validate_every=50000"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(data_dir), stdout=subprocess.PIPE, text=True
    )
    while "step 10 " not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    left = process.stdout.read()
    assert process.wait(timeout=60) == 75
    assert left.endswith(f"saved; python -m experiments.train --workdir={tmp_path} goes on\n")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "preempted"
    assert result["step"] >= 10
    process = subprocess.Popen(
        [*command[:3], f"--workdir={tmp_path}"],
        cwd=ROOT, env=environment(data_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while (line := process.stderr.readline()) and "going on from step" not in line:
        pass
    assert f"going on from step {result['step']} of 100000" in line
    time.sleep(0.5)
    process.kill()


def refuse(run, *arguments):
    """What a user sees: one line, status 2."""
    done = run(*arguments, status=2)
    assert done.stdout == ""
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_an_unknown_key_is_one_line(run, tmp_path):
    line = refuse(run, "train", SMOKE, f"--workdir={tmp_path}/a", "--config.model.positons=learned")
    assert line == "error: unknown config key model.positons; the nearest known one is model.positions"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config=configs/nope.py", "--workdir=runs/refused"], "there is no config file 'configs/nope.py'"),
        (["train", "--config=configs/base.py:tiny", "--workdir=runs/refused"], "the config argument is 'tiny'; it must be"),
        (["train", SMOKE], "--workdir is missing; see --help"),
        (["train", SMOKE, "--workdir=runs/refused", "--steps=3"], "Unknown command line flag 'steps'"),
        (["train", SMOKE, "--workdir=runs/refused", "--config.train.steps=many"], "train.steps is 'many'; it must be a number"),
        (["train", SMOKE, "--workdir=runs/refused", "--config.train.steps=0"], "train.steps is 0; it must be at least 1"),
        (["train", SMOKE, "--workdir=runs/refused", "oops"], "unexpected argument 'oops'"),
        (["evaluate", "--workdir=/nowhere"], "/nowhere is not a run: it has no config.json"),
        (["translate", "--workdir=/nowhere"], "/nowhere is not a run: it has no config.json"),
        (["train", "--workdir=runs/refused", "--config.train.steps=3"], "--config.train.steps needs --config"),
        (["visualize", "--workdir=/nowhere"], "/nowhere is not a run: it has no config.json"),
        (["report", "--root=/nowhere"], "/nowhere is not a study: it has no study.json"),
        (["benchmark"], "say what, one of: train"),
        (["benchmark", "train", "decode"], "unexpected argument 'decode'"),
        (["benchmark", "train", "--shape=huge"], "--shape is 'huge'; it must be one of: base, tiny"),
        (["launch", "--sweep=nope.py", "--root=runs/refused"], "there is no sweep file 'nope.py'"),
        (["launch", "--sweep=configs/sweeps/positions.py", "--root=runs/refused", "--set=steps=3"], "unknown config key steps"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_usage_is_one_line(run, arguments, message):
    assert message in refuse(run, *arguments)


def test_another_config_is_refused_by_name(run, trained):
    line = refuse(run, "train", SMOKE, f"--workdir={trained}", "--config.model.d_ff=96")
    assert line.endswith("smoke has another config: model.d_ff is 64 there, 96 here")


def test_a_missing_file_is_one_line(run, tmp_path):
    arguments = ["--config.data.train=no.tsv", "--config.data.validation=no.tsv", f"--workdir={tmp_path}/a"]
    line = refuse(run, "train", "--config=configs/text.py:smoke", *arguments)
    assert line == "error: data.train: no.tsv (or .gz) is not a file"


def test_a_refused_start_leaves_nothing_in_the_way(run, tmp_path):
    wrong = ("--config.model.positions=lerned", f"--workdir={tmp_path}/a")
    assert "model.positions is 'lerned'" in refuse(run, "train", SMOKE, *wrong)
    missing = ("--config.data.train=no.tsv", "--config.data.validation=no.tsv", f"--workdir={tmp_path}/a")
    assert "no.tsv" in refuse(run, "train", "--config=configs/text.py:smoke", *missing)
    run(
        "train",
        "--config",
        "configs/number_words.py:smoke",
        f"--workdir={tmp_path}/a",
        "--config.train.steps=1",
    )


def test_help_is_no_error(run):
    assert "--workdir" in run("train", "--help").stdout


def test_a_run_in_training_is_left_alone(run, trained):
    with Run(trained).locked():
        line = refuse(run, "train", f"--workdir={trained}")
    assert line.endswith("smoke is being trained by another process")


def test_what_may_not_be_read_is_one_line(tmp_path, monkeypatch, capsys):
    """As root every file may be read, so the refusal is made up."""

    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refused)
    assert entry._guarded(lambda: Run(tmp_path).config) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/config.json: Permission denied\n"


def test_an_unreadable_workdir_is_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    assert refuse(run, "train", SMOKE, f"--workdir={tmp_path}/file").endswith("file is not a folder")
    assert "cannot make" in refuse(run, "train", SMOKE, f"--workdir={tmp_path}/file/run")
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in refuse(run, "evaluate", f"--workdir={tmp_path}")
