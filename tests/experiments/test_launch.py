"""The commands `launch` and `report`: launches, failed runs, interruptions, and error messages."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from experiments.run_folder import Run
from experiments.stop_signal import PREEMPTED
from experiments.study import local_runs
from experiments.study.queue import Ended
from experiments.study.results import read_study
from experiments.study.sweep import PlannedRun
from tests.support.commands import call, refuse, start
from tests.support.studies import RATES, write_run
from transformer.json_files import read_json


def test_a_study_runs_only_missing_commands(study_flags, in_this_process, without_costs, tmp_path):
    """The run is trained and evaluated, then only evaluated. See also the study of several tasks."""
    root, flags = tmp_path / "study", (*study_flags, "--only=slow", "--set=train.steps=2")
    first = call("launch", *flags)
    assert "rates: 1 runs, 0 done, 1 to do" in first.stdout
    assert "[1/1] slow/0-" in first.stdout
    (result,) = root.glob("*/0-*/result.json")
    assert read_json(result)["status"] == "done"
    table = (root / "report" / "table.md").read_text()
    assert table in first.stdout

    written = result.stat().st_mtime_ns
    (result.parent / "eval" / "test.json").unlink()
    second = call("launch", *flags)
    assert "rates: 1 runs, 0 done, 1 to do" in second.stdout
    assert result.stat().st_mtime_ns == written
    assert (root / "report" / "table.md").read_text() == table
    assert table in call("report", f"--root={root}").stdout

    line = refuse("launch", *study_flags, "--set=train.steps=11")
    assert line == (
        f"{root} contains this study with different settings of slow: train.steps is 2 there, 11 here; name another --root"
    )


def test_a_dry_run_lists_the_runs_and_writes_nothing(study_flags, tmp_path):
    done = call("launch", *study_flags, "--seeds=5", "--dry_run")
    assert done.stderr == ""
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:-1]]
    names = [row[0].partition("-")[0] for row in rows]
    assert names == [f"| {variant}/{seed}" for seed in range(5) for variant in ("slow", "fast")]
    assert {row[1] for row in rows} == {"new"}
    assert all(float(row[2]) > 1e6 for row in rows)
    assert done.stdout.endswith("rates: 10 runs, 0 trained\n")
    assert not (tmp_path / "study").exists()


TUNED_SWEEP = """
CONFIG = "configs/number_words.py:smoke"
VARIANTS = {"one": {}, "two": {"model.positions": "none"}}
TUNE = {"optimizer.learning_rate": (1e-5, 1e-3, 1e-2)}
SPLITS = ("test",)
METRICS = ("chrf",)
"""


@pytest.fixture
def written_by_hand(monkeypatch, without_costs, tmp_path):
    """Writes the files of each run instead of training it. A run with the highest rate diverges.

    Returns a list to which each job adds its name.
    """
    names = []

    def run_jobs(jobs, *_):
        for job in jobs:
            names.append(job.name)
            config = job.begin()
            run = PlannedRun(job.name.partition("/")[0], config.train.seed, config)
            rate = config.optimizer.learning_rate
            if rate == 1e-2:
                write_run(tmp_path / "study", run, {}, "failed", {"reason": "diverged"})
                yield Ended(job, 3, 1.0)
                continue
            scores = {"test": {"chrf": 50.0, "by_length": []}} if len(job.commands) > 1 else {}
            written = write_run(tmp_path / "study", run, scores, result={"validation": {"nll": 1 / rate}})
            (written.folder / "checkpoints").mkdir(exist_ok=True)
            yield Ended(job, 0, 1.0)

    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
    return names


@pytest.mark.usefixtures("without_costs")
def test_a_dry_run_lists_selected_runs_without_the_first_seed(study_flags):
    done = call("launch", *study_flags, "--seeds=3", "--dry_run", "--only=fast/1", "--only=slow/2")
    assert [line.partition("-")[0] for line in done.stdout.splitlines()[2:-1]] == ["| fast/1", "| slow/2"]


@pytest.mark.slow
def test_each_variant_gets_the_best_of_its_trials(study_flags, written_by_hand, tmp_path):
    (tmp_path / "rates.py").write_text(TUNED_SWEEP)
    done = call("launch", *study_flags)
    assert "rates: 6 trials for tuning, 0 done, 6 to do" in done.stdout
    assert "rates: 2 runs, 0 done, 2 to do" in done.stdout
    study = read_study(tmp_path / "study")
    for variant in ("one", "two"):
        chosen, trials = study.tuned[variant]
        assert chosen == {"optimizer.learning_rate": 1e-3}
        assert [trial.criterion for trial in trials] == [pytest.approx(1e5), pytest.approx(1e3), None]
        assert list(study.scores[variant]) == [0]
    again = call("launch", *study_flags)
    assert "rates: 6 trials for tuning, 6 done, 0 to do" in again.stdout
    assert "rates: 2 runs, 2 done, 0 to do" in again.stdout
    plan = call("launch", *study_flags, "--dry_run").stdout
    states = [line.split(" | ")[1] for line in plan.splitlines()[2:8]]
    assert sorted(states) == ["diverged"] * 2 + ["done"] * 2 + ["trained"] * 2
    assert plan.endswith("these trials tune the variants; 2 runs with the best values follow\n")


@pytest.mark.slow
def test_only_the_selected_runs_and_their_trials_are_launched(study_flags, written_by_hand, tmp_path):
    (tmp_path / "rates.py").write_text(TUNED_SWEEP)
    call("launch", *study_flags, "--seeds=3", "--only=two/1")
    assert [name.partition("-")[0] for name in written_by_hand] == ["two/0"] * 3 + ["two/1"]
    study = read_study(tmp_path / "study")
    assert list(study.tuned) == ["two"]
    assert study.planned == {"one": [], "two": [0, 1, 2]}

    written_by_hand.clear()
    trial = next(tmp_path.glob("study/two/0-*")).name
    done = call("launch", *study_flags, "--seeds=3", f"--only=two/{trial}")
    assert written_by_hand == []
    assert "rates: 1 trials for tuning, 1 done, 0 to do" in done.stdout

    call("launch", *study_flags, "--seeds=3", "--exclude=one", "--exclude=*/2")
    assert [name.partition("-")[0] for name in written_by_hand] == ["two/0"]
    call("launch", *study_flags, "--seeds=3")
    assert read_study(tmp_path / "study").planned == {"one": [0, 1, 2], "two": [0, 1, 2]}


@pytest.mark.usefixtures("without_costs")
def test_a_study_with_fail_fast_stops_at_the_first_failure(study_flags, monkeypatch):
    closed = []

    def run_jobs(jobs, *_):
        try:
            for job in jobs:
                job.begin()
                yield Ended(job, 1, 1.0)
        finally:
            closed.append(job.name.partition("/")[0])

    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
    done = call("launch", *study_flags, "--fail_fast", status=1)
    assert "stopping at the first failure" in done.stdout
    assert closed == ["slow"]


def test_a_trial_that_diverges_does_not_stop_a_study_with_fail_fast(study_flags, written_by_hand, tmp_path):
    (tmp_path / "rates.py").write_text(TUNED_SWEEP)
    done = call("launch", *study_flags, "--fail_fast")
    assert "rates: 2 runs, 0 done, 2 to do" in done.stdout


def test_runs_without_weights_are_not_trained_again_for_a_new_split(study_flags, written_by_hand, tmp_path):
    call("launch", *study_flags, "--only=slow")
    folders = sorted((tmp_path / "study").glob("*/*-*"))
    for folder in folders:
        (folder / "checkpoints").rmdir()
    sweep = tmp_path / "rates.py"
    sweep.write_text(sweep.read_text().replace('("test",)', '("test", "test_long")'))
    line = call("launch", *study_flags, "--only=slow", status=2).stderr.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path}/study/")
    assert "is stored without weights, so it cannot be scored again; restore the splits and metrics" in line


def test_more_jobs_than_cores_are_refused(study_flags):
    cores = len(os.sched_getaffinity(0))
    line = refuse("launch", *study_flags, f"--jobs={cores + 1}")
    assert line == (f"--jobs is {cores + 1}, but this machine has {cores} processor cores; lower --jobs")


@pytest.mark.usefixtures("without_costs")
def test_a_failed_run_is_reported_and_the_other_runs_continue(study_flags, tmp_path, monkeypatch):
    def run_jobs(jobs, *_):
        for job, status in zip(jobs, (1, 0), strict=True):
            job.begin()
            yield Ended(job, status, 1.0)

    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
    done = call("launch", *study_flags, status=1)
    log = next(tmp_path.glob("study/slow/0-*")) / "log.txt"
    assert f"failed with status 1; see {log} (after 0:01)" in done.stdout
    assert "[2/2] fast/0-" in done.stdout


@pytest.mark.slow  # test_queue.py interrupts jobs that need no training
def test_an_interrupted_study_saves_its_runs_and_says_how_to_resume(study_flags, tmp_path):
    """The launcher and the run are real processes."""
    flags = (*study_flags, "--set=train.steps=100000", "--set=train.validate_every=50000")
    with start("launch", *flags, text=True) as process:
        while not any("step 10 " in log.read_text() for log in tmp_path.glob("study/*/*/log.txt")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED
    assert errors.endswith("standard deviations.\nstopping: current runs save a checkpoint first\n")
    assert output.endswith("interrupted; run the same command again to resume the study\n")
    (result,) = tmp_path.glob("study/*/*/result.json")
    assert json.loads(result.read_text())["status"] == "preempted"


@pytest.mark.slow
def test_every_run_is_done_once_whatever_happens_to_the_launchers(study_flags, tmp_path):
    """The first launcher is killed. Then two launchers run at the same time, and one loses its terminal."""
    root = tmp_path / "study"
    sweep = RATES.replace('"slow":', '"a": {"model.d_ff": 8}, "b": {"model.d_ff": 24}, "slow":')
    (tmp_path / "rates.py").write_text(sweep)
    flags = (*study_flags, "--seeds=2", "--set=train.steps=60")

    def logs() -> str:
        return "".join(path.read_text() for path in root.glob("*/*/log.txt"))

    def wait_for(condition) -> None:
        end = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < end, logs()
            time.sleep(0.1)

    with start("launch", *flags) as first:
        wait_for(lambda: "step 20 " in logs() or first.poll() is not None)
        first.kill()
    with start("launch", *flags) as second, start("launch", *flags) as third:
        wait_for(lambda: logs().count("60 of 60 steps") >= 3)
        second.send_signal(signal.SIGHUP)
        assert second.wait(timeout=120) == PREEMPTED
        _, errors = third.communicate(timeout=600)
    assert third.returncode == 0, errors
    results = [read_json(path)["status"] for path in root.glob("*/*/result.json")]
    assert results == ["done"] * 8
    for log in root.glob("*/*/log.txt"):
        assert log.read_text().count(": 60 of 60 steps in ") == 1, log
        assert log.read_text().count("test: 60 sentences in ") == 1, log
    report = {path.name: path.read_bytes() for path in (root / "report").iterdir()}
    for path in (root / "report").iterdir():
        path.unlink()
    call("report", f"--root={root}")
    assert {path.name: path.read_bytes() for path in (root / "report").iterdir()} == report


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("launch", ["--sweep=nope.py"], "there is no sweep file 'nope.py'"),
        ("launch", ["--sweep=positions"], "there is no sweep file 'positions'; did you mean configs/sweeps/positions.py?"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--set=steps=3"], "unknown config key steps"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--seeds=0"], "--seeds is '0'; it must be a positive integer"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--config.train.steps=3"],
         "unknown flag --config.train.steps; write --set=train.steps=3 for this command"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--only=rope", "--only=ropes"], "--only has 'ropes', which matches no run; give a variant, VARIANT/SEED or a pattern, such as sinusoidal or '*/0'"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--exclude=*/5"], "--exclude has '*/5', which matches no run; "),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--devices_per_run=1000"], "--jobs=1 with --devices_per_run=1000 needs 1000 "),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--devices_per_run=0"], "--devices_per_run is '0'; it must be a positive integer"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--retries=-1"], "--retries is '-1'; it must be a non-negative integer"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--executor=pbs"], "--executor is 'pbs'; it must be one of: local, slurm"),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--sbatch=--gpus=1"], "--sbatch needs --executor=slurm; "),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--executor=slurm", "--devices_per_run=1"], "--devices_per_run cannot be used with Slurm; "),
        ("launch", ["--sweep=configs/sweeps/positions.py", "--executor=slurm", "--fail_fast"], "--fail_fast cannot be used with Slurm; "),
        ("report", [], "/nowhere is not a study: study.json is missing; start a study with python -m experiments.launch --sweep=FILE --root=/nowhere"),
    ],
)  # fmt: skip
def test_wrong_flags_give_a_one_line_error(command, arguments, message):
    assert refuse(command, "--root=/nowhere", *arguments).startswith(message)
    assert not Path("/nowhere").exists()


@pytest.mark.usefixtures("without_costs")
def test_relaunch_stores_changes_that_do_not_affect_the_result(study_flags, tmp_path, monkeypatch):
    def run_jobs(jobs, *_):
        for job in jobs:
            job.begin()
            hashes[job.folder] = Run(job.folder).config_hash  # as if training had started
            yield Ended(job, 3, 1.0)

    hashes = {}
    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
    identity = property(lambda run: {"config": hashes[run.folder]} if run.folder in hashes else None)
    monkeypatch.setattr(Run, "identity", identity)
    call("launch", *study_flags, status=1)
    call("launch", *study_flags, "--set=train.log_every=3", status=1)
    configs = [read_json(path) for path in tmp_path.glob("study/*/0-*/config.json")]
    assert [config["train"]["log_every"] for config in configs] == [3, 3]


def test_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    line = refuse("launch", "--sweep=configs/sweeps/positions.py", f"--root={tmp_path}/file")
    assert line == f"{tmp_path}/file is not a folder; name another --root"
