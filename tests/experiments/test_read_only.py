"""Read-only folders, on real file systems that a process of its own mounts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.run_folder import Run
from tests.support.commands import ROOT, call, environment

# Mounts the folder $0 read-only for this process, then runs the command $@.
MOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT)


@pytest.fixture
def run_read_only(tmp_path):
    """Returns a function that runs a command in a process to which a folder is read-only."""
    done = subprocess.run([*NAMESPACE, tmp_path, "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this system cannot mount a folder in a namespace of its own")

    def run(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [*NAMESPACE, folder, sys.executable, "-m", f"experiments.{name}", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow  # test_corpus.py has a fast test without a mount
def test_a_run_on_a_read_only_data_folder_stores_the_tokens_itself(smoke, tmp_path, run_read_only):
    data = tmp_path / "data"
    flags = (*smoke, f"--config.data.data_dir={data}")
    call("train", *flags, f"--workdir={tmp_path}/usual")
    expected = Run(tmp_path / "usual").result
    tokens = next(data.rglob("tokens"))
    shutil.rmtree(tokens)
    done = run_read_only(data, "train", *flags, f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert not tokens.exists()
    result = Run(tmp_path / "run").result
    assert (result["identity"], result["validation"]) == (expected["identity"], expected["validation"])
    checked = call("verify", f"--workdir={tmp_path}/run").stdout
    assert f"data: {result['identity']['data']} (validation, train)" in checked
    # A damaged token in the run folder is noticed as it is in the data folder.
    damaged = next((tmp_path / "run" / "tokens").rglob("train/source.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-2])
    assert f"{damaged} was damaged" in call("verify", f"--workdir={tmp_path}/run", status=2).stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param(
            "prepare",
            ["--config=configs/number_words.py:smoke", "--config.data.data_dir={0}"],
            marks=pytest.mark.slow,
        ),
        ("train", ["--config=configs/number_words.py:smoke", "--workdir={0}/run"]),
        pytest.param("evaluate", ["--workdir={0}/trained"], marks=pytest.mark.slow),
        pytest.param("visualize", ["--workdir={0}/trained", "--sentence=one"], marks=pytest.mark.slow),
    ],
)
def test_a_command_that_must_write_into_a_read_only_folder_says_so(
    trained, tmp_path, run_read_only, name, arguments
):
    shutil.copytree(trained, tmp_path / "trained")
    done = run_read_only(tmp_path, name, *(argument.format(tmp_path) for argument in arguments))
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert line.startswith("error: ")
    assert "Read-only file system; " in line
