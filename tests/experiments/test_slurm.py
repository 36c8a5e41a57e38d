"""Studies with Slurm, tested with stand-ins for its commands and, if Slurm is installed, with its daemons."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.run_folder import Run
from experiments.study import local_runs
from experiments.study.queue import Ended
from experiments.study.results import read_study
from experiments.study.sweep import PlannedRun
from tests.support.commands import ROOT, call, environment, refuse
from tests.support.studies import write_run

SWEEP = """
CONFIG = "configs/number_words.py:smoke"
VARIANTS = {"slow": {"optimizer.learning_rate": 1e-3}, "fast": {"optimizer.learning_rate": 1e-2}}
SPLITS = ("test",)
METRICS = ("chrf",)
"""
TUNE = 'TUNE = {"model.positions": ("none", "rope")}\n'
# Stand-ins for the commands of Slurm: sbatch numbers its jobs from 11, and squeue prints the file `queue`.
COMMANDS = {
    "sbatch": 'for last in "$@"; do :; done; cp "$last" "$FAKE/script"; echo "$@" >> "$FAKE/calls"; n=$(wc -l < "$FAKE/calls"); echo $((10 + n))',
    "squeue": 'cat "$FAKE/queue"',
    "srun": 'echo "$@" >> "$FAKE/calls"; exit $SRUN_STATUS',
    "scontrol": 'echo "scontrol $@" >> "$FAKE/calls"',
}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A folder with stand-ins for the commands of Slurm, on PATH."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "queue").touch()
    for name, text in COMMANDS.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


@pytest.fixture
def study_flags(tmp_path, without_costs) -> tuple[str, ...]:
    (tmp_path / "rates.py").write_text(SWEEP)
    return (f"--sweep={tmp_path}/rates.py", f"--root={tmp_path}/study", "--seeds=2", "--executor=slurm")


def finish(root: Path, pattern: str = "*/*-*", **result) -> None:
    """Writes results into all run folders that match the pattern."""
    for folder in root.glob(pattern):
        run = Run(folder)
        planned = PlannedRun(folder.parent.name, run.config.train.seed, run.config)
        write_run(root, planned, {"test": {"chrf": 1.0, "by_length": []}}, result=result)


def test_missing_runs_become_the_tasks_of_an_array(fake, study_flags, tmp_path):
    options = ("--jobs=3", "--sbatch=--partition=gpu", "--sbatch=--gpus=1", "--set=train.steps=30")
    done = call("launch", *study_flags, *options)
    assert "submitted array job 11: 4 runs" in done.stdout
    assert "rates: 4 runs, 4 new" in done.stdout
    script = (fake / "script").read_text()
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert lines == [
        "--job-name=rates",
        "--array=0-3%3",
        "--requeue",
        "--open-mode=append",
        "--signal=TERM@120",
        "--nodes=1",
        "--partition=gpu",
        "--gpus=1",
    ]
    assert script == (tmp_path / "study" / "slurm" / "array-0.sh").read_text()
    assert f"--output={tmp_path}/study/slurm/%A_%a.txt" in (fake / "calls").read_text()

    (fake / "queue").write_text("11 0 RUNNING\n11 1 PENDING\n11 2 PENDING\n12 3 PENDING\n")
    again = call("launch", *study_flags, *options)
    assert "submitted array job 12: 1 runs" in again.stdout
    assert "rates: 4 runs, 1 new, 2 pending, 1 running" in again.stdout
    assert "runs=(fast/1)" in (fake / "script").read_text()


TASKS = """
CONFIGS = {"translation": "configs/number_words.py:smoke", "language": "configs/gpt.py:smoke"}
VARIANTS = {"slow": {"optimizer.learning_rate": 1e-3}, "deep": {"model.encoder_layers": 2}}
SPLITS = {"translation": ("test",), "language": ("test",)}
METRICS = {"translation": ("chrf",), "language": ("nll",)}
PRIMARY = {"translation": ("chrf", "test"), "language": ("nll", "test")}
"""


@pytest.mark.slow
def test_a_study_of_several_tasks_is_an_array_whose_runs_have_the_names_of_the_tasks(
    fake, study_flags, tmp_path
):
    (tmp_path / "rates.py").write_text(TASKS)
    call("launch", *study_flags)
    runs = [
        f"{row}/{seed}"
        for seed in (0, 1)
        for row in ("translation/slow", "translation/deep", "language/slow")
    ]
    assert f"runs=({' '.join(runs)})" in (fake / "script").read_text()
    (fake / "queue").write_text("".join(f"11 {number} PENDING\n" for number in range(6)))
    again = call("launch", *study_flags, "--only=language")
    assert "rates: 2 runs, 2 pending" in again.stdout


def run_task(fake: Path, index: int, status: int, restarts: int = 0, state: str = "RUNNING") -> list[str]:
    """Runs a task of the last script, and returns the calls of srun and scontrol."""
    (fake / "calls").write_text("")
    (fake / "queue").write_text(f"{state}\n")
    slurm = {
        "SLURM_ARRAY_JOB_ID": "11",
        "SLURM_ARRAY_TASK_ID": str(index),
        "SLURM_RESTART_COUNT": str(restarts),
    }
    done = subprocess.run(
        ["bash", fake / "script"], env=os.environ | slurm | {"SRUN_STATUS": str(status)}, check=False
    )
    assert done.returncode == status
    return (fake / "calls").read_text().splitlines()


def test_a_task_launches_one_run_and_is_requeued_only_if_it_was_preempted(fake, study_flags, tmp_path):
    call("launch", *study_flags, "--retries=2", "--set=train.steps=30")
    (task,) = run_task(fake, 1, status=0)
    root, sweep = tmp_path / "study", tmp_path / "rates.py"
    flags = f"--sweep={sweep} --root={root} --seeds=2 --set=train.steps=30 --only=fast/0"
    assert task.endswith(f"-m experiments.launch {flags}")
    assert run_task(fake, 1, status=75, restarts=1)[1:] == ["scontrol requeue 11_1"]
    assert run_task(fake, 1, status=75, restarts=2)[1:] == []
    assert run_task(fake, 1, status=75, state="COMPLETING")[1:] == []  # cancelled with scancel
    assert run_task(fake, 1, status=1)[1:] == []


def test_a_run_on_several_nodes_is_launched_on_one_and_trained_on_all(
    fake, study_flags, tmp_path, monkeypatch
):
    call("launch", *study_flags, "--nodes=2", "--set=train.steps=30")
    assert "#SBATCH --nodes=2\n" in (fake / "script").read_text()
    launched = next(line for line in (fake / "script").read_text().splitlines() if "--only=" in line)
    assert launched.startswith(f"{sys.executable} -m experiments.launch ")  # not by srun
    assert "--nodes=2 --retries=0 --set=train.steps=30" in launched

    commands = []

    def run_jobs(jobs, *_):
        commands.extend(jobs[0].commands)
        yield Ended(jobs[0], 75, 1.0)

    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
    flags = (*study_flags[:-1], "--nodes=2", "--only=slow/0")
    assert refuse("launch", *flags) == "--nodes=2 needs Slurm; add --executor=slurm or remove --nodes"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    call("launch", *flags, status=75)
    training, evaluation = commands
    assert training[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert evaluation[:3] == [sys.executable, "-m", "experiments.evaluate"]


@pytest.mark.slow
def test_a_tuned_study_submits_trials_and_a_second_array_that_waits_for_them(
    fake, study_flags, tmp_path, monkeypatch
):
    root = tmp_path / "study"
    (tmp_path / "rates.py").write_text(SWEEP + TUNE)
    done = call("launch", *study_flags)
    assert "submitted array job 11: 4 runs" in done.stdout
    assert "submitted array job 12: 4 runs" in done.stdout
    trials = re.search(r"runs=\((.*)\)", (root / "slurm" / "array-0.sh").read_text())[1].split()
    assert sorted(name.partition("-")[0] for name in trials) == ["fast/0", "fast/0", "slow/0", "slow/0"]
    second = (root / "slurm" / "array-1.sh").read_text()
    assert "--dependency=afterany:11\n" in second
    assert "runs=(slow/0 fast/0 slow/1 fast/1)" in second

    launched = []

    def run_jobs(jobs, *_):
        for job in jobs:
            launched.append(job.name)
            job.begin()
            finish(
                root,
                job.name,
                validation={"nll": 1.0 if Run(job.folder).config.model.positions == "rope" else 2.0},
            )
            yield Ended(job, 0, 1.0)

    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
    task_flags = study_flags[:-1]
    for trial in trials:
        call("launch", *task_flags, f"--only={trial}")
    assert launched == trials
    for name in ("slow/0", "fast/0", "slow/1", "fast/1"):
        call("launch", *task_flags, f"--only={name}")
    assert read_study(root).tuned["slow"].chosen == {"model.positions": "rope"}
    assert [name.partition("-")[0] for name in launched[4:]] == ["slow/1", "fast/1"]  # seed 0 was a trial
    done = call("launch", *study_flags)
    assert "rates: 4 runs, 4 done" in done.stdout
    assert (root / "report" / "table.md").exists()


def test_an_error_of_slurm_is_reported_in_one_line(fake, study_flags, tmp_path, monkeypatch):
    (fake / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n"
    )
    assert refuse("launch", *study_flags) == (
        "sbatch failed: sbatch: error: invalid partition specified: gpu; check --sbatch and the state of Slurm"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    assert refuse("launch", *study_flags) == (
        "sbatch, a command of Slurm, is not installed; install Slurm or leave --executor out"
    )
    assert not (tmp_path / "study" / "slurm" / "jobs.json").exists()


CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
ProctrackType=proctrack/linuxproc
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF State=UP
"""


def shell(command: str, **options) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's daemons on this machine, with two nodes of two cores."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool/n1", "spool/n2"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    shell("mkdir -p /run/munge; chown munge: /run/munge; pgrep munged || runuser -u munge -- munged")
    shell("slurmctld; slurmd -N n1; slurmd -N n2")
    yield folder
    shell("scancel --me; sleep 1")
    for path in folder.glob("*.pid"):
        os.kill(int(path.read_text()), signal.SIGKILL)


SMALL = {"data.options.lists": 60, "decode.batch_tokens": 4096}
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("slurmctld") is None, reason="needs root, slurmctld, slurmd and munge"
)


def run_command(*flags: str) -> str:
    """Runs launch in a real process, and returns its output."""
    command = [sys.executable, "-m", "experiments.launch", *flags]
    return shell(shlex.join(command), cwd=ROOT, env=environment())


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, shell("squeue --array; tail -n 20 $(dirname $SLURM_CONF)/*.log")
        time.sleep(1)


def queue_is_empty() -> bool:
    return not shell("squeue --noheader").strip()


@pytest.mark.slow
@needs_slurm
def test_a_study_survives_preemption_and_a_killed_task(slurm, study_flags, data_dir, tmp_path):
    root = tmp_path / "study"
    changes = SMALL | {
        "data.data_dir": data_dir,
        "train.steps": 500,
        "train.validate_every": 250,
        "train.log_every": 10,
    }
    flags = (
        *study_flags,
        "--sbatch=--exclusive",
        *(f"--set={key}={value}" for key, value in changes.items()),
    )

    def is_training(name: str) -> bool:
        return any("step 50 " in path.read_text() for path in root.glob(f"{name}-*/log.txt"))

    # Each task takes a whole node, so two tasks run at the same time.
    assert "submitted array job 1: 4 runs" in run_command(*flags)
    wait_for(lambda: is_training("slow/0") and is_training("fast/0"))
    (preempted,) = shell("squeue --array --noheader --nodelist=n1 --states=running --format=%K").split()
    (killed,) = shell("squeue --array --noheader --nodelist=n2 --states=running --format=%K").split()
    shell("sbatch --partition=high --nodelist=n1 --exclusive --output=/dev/null --wrap='sleep 5'")
    shell(f"pkill -KILL -f -- '--only={('slow/0', 'fast/0')[int(killed)]}$'")
    wait_for(lambda: " high " not in shell("squeue --array"))
    shell(f"scontrol update jobid=1_{preempted} StartTime=now")  # otherwise Slurm waits for two minutes
    wait_for(queue_is_empty)
    outputs = {path.name: path.read_text() for path in sorted(root.glob("slurm/*.txt"))}
    assert "stopping: current runs save a checkpoint first" in outputs[f"1_{preempted}.txt"]
    again = run_command(*flags)
    assert re.search(r"submitted array job \d+: 1 runs", again)
    # The training process of the killed launcher may have finished.
    assert re.search(r"rates: 4 runs, 3 done, 1 (stopped|trained)", again)
    wait_for(queue_is_empty)
    assert "rates: 4 runs, 4 done" in run_command(*flags)
    assert {variant: list(seeds) for variant, seeds in read_study(root).scores.items()} == {
        "slow": [0, 1],
        "fast": [0, 1],
    }
    logs = [path.read_text() for path in root.glob("*/*/log.txt")]
    assert sum("resuming from step" in log for log in logs) >= 1


@pytest.fixture
def node_names():
    """Makes the names of the nodes, which `jax.distributed` connects to, those of this machine."""
    path = Path("/etc/hosts")
    before = path.read_text()
    path.write_text(f"{before}\n127.0.0.1 n1 n2\n")
    yield
    path.write_text(before)


@pytest.mark.slow
@needs_slurm
def test_a_run_trains_on_two_nodes_and_resumes_there(slurm, node_names, study_flags, data_dir, tmp_path):
    root = tmp_path / "study"
    changes = SMALL | {"data.data_dir": data_dir, "train.steps": 500, "train.validate_every": 250}
    changes |= {"train.log_every": 10}
    flags = (*study_flags, "--nodes=2", *(f"--set={key}={value}" for key, value in changes.items()))
    run_command(*flags, "--only=slow/0")
    wait_for(lambda: any(root.glob("slow/0-*/log.txt")))
    (log,) = root.glob("slow/0-*/log.txt")
    wait_for(lambda: "step 50 " in log.read_text())
    shell("scancel --signal=TERM 1_0")
    wait_for(lambda: "saved; resume" in log.read_text())
    wait_for(lambda: shell("squeue --noheader --format=%T").strip() == "PENDING")
    shell("scontrol update jobid=1_0 StartTime=now")  # otherwise Slurm waits for two minutes
    wait_for(queue_is_empty)
    assert "rates: 1 runs, 1 done" in run_command(*flags, "--only=slow/0"), log.read_text()
    text = log.read_text()
    for number in range(2):
        assert text.count(f"process {number} of 2: 1 of 2 devices") == 2
    assert "resuming from step" in text
