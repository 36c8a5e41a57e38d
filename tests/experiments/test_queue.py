"""The local queue: slots, order, locks, retries, signals, and the display of the jobs."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest

from experiments.stop_signal import SIGNALS
from experiments.study import queue
from experiments.study.live import StatusBoard, outcome, run_progress
from experiments.study.queue import LOCK_FILE, Ended, Job, Slot, is_at_work, make_slots, run_jobs
from tests.support.commands import ROOT, environment
from tests.support.errors import refused
from transformer.files import try_lock

SLOT = Slot(sorted(os.sched_getaffinity(0)), [])


def make_job(folder, name, *codes, **options):
    return Job(name, folder / name, [[sys.executable, "-c", code] for code in codes], **options)


def test_the_queue_limits_the_running_jobs_and_survives_failures(tmp_path):
    """Each job writes the number of running jobs. The first two wait for each other."""
    place = tmp_path / "busy"
    place.mkdir()
    busy = """
import os, pathlib, time
place, expected = pathlib.Path({!r}), {}; mine = place / str(os.getpid()); mine.touch()
deadline = time.time() + 30
while len(list(place.iterdir())) < expected and time.time() < deadline: time.sleep(0.01)
time.sleep(0.2); print("running", len(list(place.iterdir())), flush=True); mine.unlink()
"""
    jobs = [make_job(tmp_path, name, busy.format(str(place), 2 if name in "ab" else 1)) for name in "abcd"]
    jobs.insert(1, make_job(tmp_path, "bad", "raise SystemExit(3)", "print('never')"))
    ended = {end.job.name: end.status for end in run_jobs(jobs, [SLOT, SLOT])}
    assert ended == {"a": 0, "bad": 3, "b": 0, "c": 0, "d": 0}
    assert "never" not in jobs[1].log.read_text()
    counts = [int(jobs[i].log.read_text().split()[1]) for i in (0, 2, 3, 4)]
    assert max(counts) == 2


def test_the_commands_of_a_job_run_in_order_after_begin_is_called(tmp_path):
    begun = tmp_path / "begun"
    job = make_job(
        tmp_path,
        "a",
        f"print(open({str(begun)!r}).read())",
        "print('second')",
        begin=lambda: begun.write_text("1"),
    )
    (ended,) = run_jobs([job], [SLOT])
    assert ended[:2] == (job, 0)
    assert job.log.read_text() == "1\nsecond\n"


SAVES = """
import signal, time
def save(*_): time.sleep(0.5); print("saved", flush=True); raise SystemExit(75)
signal.signal(signal.SIGTERM, save); print("ready", flush=True); time.sleep(60)
"""


def test_a_stopped_queue_asks_its_jobs_to_save_and_waits(tmp_path):
    jobs = [make_job(tmp_path, "a", SAVES, "print('never')"), make_job(tmp_path, "b", "print('never')")]

    def ready():
        return jobs[0].log.exists() and "ready" in jobs[0].log.read_text()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(jobs, [SLOT], should_stop=ready))
    assert time.monotonic() - started < 30
    assert jobs[0].log.read_text() == "ready\nsaved\n"
    assert not jobs[1].log.exists()


def test_closing_the_iterator_saves_the_jobs_at_work(tmp_path):
    saves = make_job(tmp_path, "a", SAVES)
    fails = make_job(
        tmp_path,
        "b",
        f"import pathlib, time\nwhile 'ready' not in pathlib.Path({str(saves.log)!r}).read_text(): time.sleep(0.1)\n"
        "raise SystemExit(1)",
    )
    ends = run_jobs([saves, fails, make_job(tmp_path, "c", "print('never')")], [SLOT, SLOT])
    assert next(ends).job == fails
    ends.close()
    assert saves.log.read_text() == "ready\nsaved\n"
    assert not is_at_work(saves.folder)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("raise SystemExit(75)", 75),
        *((f"os.kill(os.getpid(), {int(number)})", -number) for number in SIGNALS),
    ],
)
def test_a_preempted_job_starts_again_a_bounded_number_of_times(tmp_path, end, status):
    """A command handles signals once it has loaded its packages. Before, a signal ends it with a negative status."""
    job = make_job(tmp_path, "a", f"import os; print('started', flush=True); {end}")
    (ended,) = run_jobs([job], [SLOT], retries=2)
    assert ended.status == status
    assert len(re.findall("^started$", job.log.read_text(), re.MULTILINE)) == 3


def test_a_job_that_runs_again_appends_to_its_log(tmp_path):
    job = make_job(tmp_path, "a", "print('output')")
    for _ in range(2):
        list(run_jobs([job], [SLOT]))
    assert re.fullmatch(r"output\n\n--- started again at [\d :-]+ ---\noutput\n", job.log.read_text())


@pytest.mark.parametrize("done", [True, False])
def test_a_job_waits_for_another_launcher_and_runs_only_if_that_one_fails(tmp_path, done):
    first = make_job(tmp_path, "a", "print('output')", is_done=lambda: done)
    second = make_job(tmp_path, "b", "print('output')")
    first.folder.mkdir()
    lock = try_lock(first.folder / LOCK_FILE)
    assert lock
    assert is_at_work(first.folder)
    ends = run_jobs([first, second], [SLOT])
    assert next(ends).job == second
    lock.close()
    assert not is_at_work(first.folder)
    (ended,) = ends
    assert (ended.job, ended.status, ended.elsewhere) == (first, 0, done)
    assert first.log.exists() == (not done)


def test_a_job_keeps_its_lock_after_its_launcher_was_killed(tmp_path):
    code = """
    import sys, pathlib
    from experiments.study.queue import Job, Slot, run_jobs
    sleeps = "import pathlib, time\\nwhile not pathlib.Path('go').exists(): time.sleep(0.1)"
    job = Job("a", pathlib.Path("a"), [[sys.executable, "-c", sleeps]])
    list(run_jobs([job], [Slot([0], [])], observe=lambda *_: print("at work", flush=True)))
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    with launcher:
        assert launcher.stdout
        assert launcher.stdout.readline() == b"at work\n"
        launcher.kill()
    assert is_at_work(tmp_path / "a")
    (tmp_path / "go").touch()
    ended = time.monotonic() + 30
    while is_at_work(tmp_path / "a") and time.monotonic() < ended:
        time.sleep(0.05)
    assert not is_at_work(tmp_path / "a")


@pytest.mark.parametrize(
    ("num_cores", "num_gpus", "jobs", "devices_per_run", "expected"),
    [
        (4, 0, 2, None, [([0, 2], ""), ([1, 3], "")]),
        (5, 0, 2, None, [([0, 2, 4], ""), ([1, 3], "")]),
        (4, 0, 2, 1, [([0], ""), ([1], "")]),
        (4, 2, 2, None, [([0, 2], "0"), ([1, 3], "1")]),
        (4, 4, 2, None, [([0, 2], "02"), ([1, 3], "13")]),
        (4, 4, 2, 1, [([0, 2], "0"), ([1, 3], "1")]),
        (1, 2, 2, None, [([0], "0"), ([0], "1")]),
    ],
)
def test_jobs_share_the_devices(monkeypatch, num_cores, num_gpus, jobs, devices_per_run, expected):
    monkeypatch.setattr(queue, "cores", lambda: list(range(num_cores)))
    monkeypatch.setattr(queue, "gpus", lambda: [str(number) for number in range(num_gpus)])
    slots = make_slots(jobs, devices_per_run)
    assert slots == [Slot(cores, list(gpus)) for cores, gpus in expected]


@pytest.mark.parametrize(
    ("num_gpus", "jobs", "devices_per_run", "message"),
    [
        (0, 3, None, "--jobs is 3, but this machine has 2 processor cores; lower --jobs"),
        (4, 5, None, "--jobs is 5, but this machine has 4 GPUs; lower --jobs"),
        (4, 2, 3, "--jobs=2 with --devices_per_run=3 needs 6 GPUs, but this machine has 4 GPUs; lower --jobs or --devices_per_run"),
    ],
)  # fmt: skip
def test_more_jobs_than_devices_are_refused(monkeypatch, num_gpus, jobs, devices_per_run, message):
    monkeypatch.setattr(queue, "cores", lambda: [0, 1])
    monkeypatch.setattr(queue, "gpus", lambda: [str(number) for number in range(num_gpus)])
    assert refused(make_slots, jobs, devices_per_run) == message


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores")
def test_a_job_sees_only_its_devices(tmp_path):
    code = "import os; print(os.sched_getaffinity(0), os.environ['CUDA_VISIBLE_DEVICES'])"
    job = make_job(tmp_path, "a", f"import time; time.sleep(0.3); {code}")
    list(run_jobs([job], [Slot(SLOT.cores[:1], ["2", "5"])]))
    assert job.log.read_text() == f"{{{SLOT.cores[0]}}} 2,5\n"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "done after 1:05"),
        (1, "failed with status 1; see {log} (after 1:05)"),
        (3, "diverged; see {log} (after 1:05)"),
        (-signal.SIGKILL, "killed (SIGKILL), perhaps because memory ran out; lower --jobs or the batch size; see {log} (after 1:05)"),
        (-signal.SIGSEGV, "killed (SIGSEGV); see {log} (after 1:05)"),
    ],
)  # fmt: skip
def test_the_outcome_says_why_a_job_ended(tmp_path, status, text):
    job = make_job(tmp_path, "a")
    assert outcome(Ended(job, status, 65.0)) == text.format(log=job.log)


def record(step, seconds_left):
    return {"kind": "train", "step": step, "loss": 2.5, "seconds_left": seconds_left}


def test_the_progress_of_a_run_is_that_of_its_last_record():
    first_step = {"kind": "train", "step": 1, "loss": 2.5}  # without the time left
    assert run_progress([]) == ("starting", 0, None, None)
    assert run_progress([first_step]) == ("training", 1, 2.5, None)
    assert run_progress([first_step, record(20, 80.0)]) == ("training", 20, 2.5, 80.0)
    assert run_progress([record(10, 900.0), record(100, 0)]) == ("evaluating", 100, 2.5, 0)


def test_the_time_left_counts_the_jobs_that_wait(tmp_path, capsys):
    jobs = [make_job(tmp_path, f"{variant}/{seed}") for variant in ("base", "big") for seed in range(3)]
    with StatusBoard(jobs, 2, {"base": [60.0], "big": [100.0, 200.0]}) as board:
        board.observe([], jobs[1:])
        board.ended(Ended(jobs[0], 0, 120.0))  # two runs of base took 60 and 120 seconds
        assert (
            capsys.readouterr().out == "[1/6] base/0: done after 2:00, about 6:30 left\n"
        )  # 90 + 150 + 150: the last of big runs alone


def test_the_last_jobs_take_as_long_as_one_job_if_there_are_more_slots(tmp_path, capsys):
    jobs = [make_job(tmp_path, f"base/{seed}") for seed in range(3)]
    with StatusBoard(jobs, 4, {}) as board:
        board.observe([], jobs[1:])
        board.ended(Ended(jobs[0], 0, 100.0))
    assert capsys.readouterr().out == "[1/3] base/0: done after 1:40, about 1:40 left\n"


def test_a_line_tells_that_a_job_has_started(tmp_path, capsys):
    job = make_job(tmp_path, "base/0")
    with StatusBoard([job], 1, {}) as board:
        for _ in range(2):
            board.observe([SimpleNamespace(job=job, slot=None, started=time.time())], [])
    assert capsys.readouterr().out == "base/0: started\n"


def test_the_time_left_includes_the_evaluation(tmp_path, monkeypatch, capsys):
    jobs = [make_job(tmp_path, f"base/{seed}") for seed in range(2)]
    progress = run_progress([record(10, 900.0), record(100, 0)])
    monkeypatch.setattr(StatusBoard, "_progress", lambda board, job: progress)
    work = SimpleNamespace(job=jobs[1], slot=None, started=time.time() - 70)
    with StatusBoard(jobs, 2, {}) as board:
        board.observe([work], [])
        board.ended(Ended(jobs[0], 0, 100.0))
    assert capsys.readouterr().out.endswith("[1/2] base/0: done after 1:40, about 0:30 left\n")
