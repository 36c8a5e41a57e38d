"""The `train` command: new runs, finished runs, interrupted runs, and error messages."""

import gzip
import json
import math
import re
import shutil
import signal

import pytest

from experiments import train
from experiments.process import USAGE
from experiments.progress import TrainingBar, TrainingLines
from experiments.run_folder import Run
from experiments.stop_signal import PREEMPTED
from experiments.trained_model import load_trained
from tests.support.commands import ROOT, call, refuse
from tests.support.toy import Regression
from transformer.config import UserError
from transformer.files import lock
from transformer.json_files import read_json, read_sealed, write_json
from transformer.tasks import TASKS
from transformer.training.metric_log import read_metrics


def test_a_run_writes_the_files_that_the_documentation_lists(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json",
        "tokenizer.model",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "result.json",
    }
    result = Run(trained).result
    assert (result["status"], result["step"]) == ("done", 300)
    assert len(result["params_sha256"]) == 64
    assert result["validation"]["step"] == 300


def test_a_finished_run_is_not_trained_again(trained):
    assert "is already trained: 300 steps" in call("train", f"--workdir={trained}").stdout


def test_a_different_config_is_refused_and_the_changed_fields_are_named(smoke, trained):
    line = refuse("train", *smoke, f"--workdir={trained}")
    assert line.startswith(
        f"{trained} has a run with another config: optimizer.learning_rate is 0.01 there, 0.003 here; "
    )
    assert "train.steps is 300 there, 20 here; " in line
    assert line.endswith("; and 4 more; name another --workdir")


def test_fields_of_the_command_line_without_effect_are_named(smoke, trained):
    flags = ("--config.model.cell=gru", "--config.model.d_ff=9", f"--workdir={trained}")
    done = call("train", *smoke, *flags, status=USAGE)
    assert done.stderr.startswith("fields without effect in this config: model.cell\n")


def test_a_run_that_another_process_trains_is_refused(trained):
    with Run(trained).locked():
        line = refuse("train", f"--workdir={trained}")
    assert line.startswith(f"{trained} is in use by another process")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nope.py"], "there is no config file 'configs/nope.py'"),
        (["--config=number_words"], "there is no config file 'number_words'; did you mean configs/number_words.py?"),
        (["--config=configs/base.py:tiny"], "the config argument is 'tiny'; it must be one of: smoke"),
        (["--config.train.steps=many"], "train.steps is 'many'; it must be a whole number"),
        (["--config.train.steps=2.5"], "train.steps is '2.5'; it must be a whole number"),
        (["--config.train.steps=0"], "train.steps is 0; it must be at least 1"),
        (["--config.decode.sampling=maybe"], "decode.sampling is 'maybe'; it must be true or false"),
        (["--config.model.positons=learned"], "unknown config key model.positons; did you mean model.positions?"),
        (["--config.model.positions=lerned"], "model.positions is 'lerned'; it must be one of: "),
        (["--config.data.options.text=raw"], "data.options.text is not an option of number_words; its options: lists"),
        (["--config.data.options.lists=no"], "data.options.lists is 'no'; it must be a whole number"),
    ],
)  # fmt: skip
def test_a_refused_start_leaves_no_folder(smoke, tmp_path, arguments, message):
    assert refuse("train", *smoke, *arguments, f"--workdir={tmp_path}/a").startswith(message)
    assert not (tmp_path / "a").exists()


def test_a_run_whose_text_is_missing_leaves_no_folder(tmp_path):
    missing = ("--config=configs/text.py:smoke", "--config.data.options.train=no.tsv")
    assert "no.tsv" in refuse("train", *missing, f"--workdir={tmp_path}/a")
    assert not (tmp_path / "a").exists()


@pytest.fixture
def preempted(monkeypatch):
    """Returns a function that runs the command in this process, which gets a SIGTERM at the first record.

    In test_stop_signal.py and test_interruptions.py, a real process is stopped.
    """

    def train_until_signal(*flags):
        signals = [signal.SIGTERM]
        monkeypatch.setattr(
            TrainingLines, "record", lambda *_: signals and signal.raise_signal(signals.pop())
        )
        return call("train", *flags, status=PREEMPTED)

    return train_until_signal


def test_sigterm_saves_and_the_same_command_resumes(smoke, preempted, tmp_path):
    changes = ("--config.train.steps=1000", "--config.train.validate_every=500")
    done = preempted(*smoke, *changes, f"--workdir={tmp_path}")
    assert "stopping: saving a checkpoint first\n" in done.stderr
    assert done.stdout.endswith(f"saved; resume with python -m experiments.train --workdir={tmp_path}\n")
    result = Run(tmp_path).result
    assert result["status"] == "preempted"
    assert result["step"] > 0

    assert f"resuming from step {result['step']}\n" in preempted(f"--workdir={tmp_path}").stderr
    resumed = Run(tmp_path).result
    assert (resumed["status"], resumed["step"] > result["step"]) == ("preempted", True)
    assert resumed["seconds"] > result["seconds"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_bug_leaves_its_traceback_in_the_run(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.train.train", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("train", *smoke, f"--workdir={tmp_path}")
    assert "ZeroDivisionError" in (tmp_path / "error.txt").read_text()
    assert Run(tmp_path).result["status"] == "failed"


REGRESSION = """
from configs import base

def get_config(argument=""):
    config = base.defaults()
    config.task = "regression"
    config.optimizer.update(warmup_steps=5, learning_rate=0.1)
    config.train.update(steps=20, log_every=10, validate_every=20, parallelism="single")
    return config
"""


@pytest.mark.slow
def test_the_steps_of_a_profile_are_written_for_xprof(smoke, tmp_path):
    """The trace of the host has a call of the update for each step."""
    call("train", *smoke, f"--workdir={tmp_path}/run", "--profile=2:4")
    (path,) = tmp_path.glob("run/profile/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    # The profiler shows a call twice: of JAX, and of the compiled function.
    assert sum(event.get("name") == "PjitFunction(train_step)" for event in events) == 2 * 3
    assert list(path.parent.glob("*.xplane.pb"))


def test_a_profile_of_no_steps_is_refused(smoke, tmp_path):
    for value in ("0:5", "7:6", "5"):
        assert refuse("train", *smoke, f"--workdir={tmp_path}/run", f"--profile={value}") == (
            f"--profile is {value!r}; it must be FIRST:LAST, two steps from 1 on, such as 20:25"
        )
    assert not (tmp_path / "run").exists()


def test_a_task_with_only_a_loss_is_trained_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "regression", Regression)
    (tmp_path / "regression.py").write_text(REGRESSION)
    run = tmp_path / "run"
    lines = call("train", f"--config={tmp_path}/regression.py", f"--workdir={run}").stdout.splitlines()
    assert re.match(r"step 10  epoch 2\.00  loss \d+\.\d{4}  lr ", lines[0])
    assert re.fullmatch(r"step 20  validation: loss \d+\.\d{4}", lines[2])
    call("visualize", f"--workdir={run}")
    assert (run / "figures" / "learning_curve.png").is_file()


def test_the_bar_shows_the_loss_of_a_task_without_perplexity(capsys):
    record = {"kind": "train", "step": 10, "loss": 2.5, "tokens_per_second": 8.0, "seconds_left": 61}
    with TrainingBar(20) as bar:
        bar.record(record)
    assert "loss 2.50, 8 tokens/s, 1:01 left" in capsys.readouterr().out


def test_a_refused_second_process_leaves_the_config_of_the_first(tmp_path):
    workdir = tmp_path / "run"
    config = ("--config=configs/number_words.py:smoke", f"--workdir={workdir}")
    with lock(workdir, wait=False):
        write_json(workdir / "config.json", {"train": {"seed": 3}})
        message = refuse("train", *config, "--config.train.seed=7")
    assert "is in use by another process" in message
    assert read_json(workdir / "config.json") == {"train": {"seed": 3}}


@pytest.mark.slow
def test_training_that_diverges_ends_with_status_3_and_its_advice_works(smoke, tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    flags = (*smoke, "--config.train.on_divergence=stop", "--config.optimizer.warmup_steps=1")
    failed = call("train", *flags, "--config.optimizer.learning_rate=1e3", workdir, status=3)
    line = failed.stderr.splitlines()[-1]
    assert line.startswith("error: training diverged: the validation loss of step 10 is ")
    assert f"; delete {tmp_path}/run or name another --workdir, and start with a lower --config.opt" in line
    result = read_sealed(tmp_path / "run" / "result.json")
    assert (result["status"], result["reason"]) == ("failed", "diverged")
    assert f"error: {result['message']}" == line
    shutil.rmtree(tmp_path / "run")
    call("train", *flags, "--config.optimizer.learning_rate=1e-3", workdir)


def test_a_changed_digit_in_a_record_is_noticed(trained, tmp_path):
    shutil.copy(trained / "metrics.jsonl", tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().split("\n")
    lines[1] = lines[1].replace('"loss": ', '"loss": 1')
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"metrics.jsonl:2: the record was damaged or edited"):
        read_metrics(tmp_path)


@pytest.fixture(scope="module")
def source(trained, tmp_path_factory):
    """A trained run to start from."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("init_from") / "source")


@pytest.fixture(scope="module")
def started(smoke, source):
    """A run that started from `source`. Tests must not write into it."""
    folder = source.parent / "started"
    steps = ("--config.train.steps=2", "--config.train.log_every=1", "--config.train.validate_every=2")
    done = call("train", *smoke, *steps, f"--init_from={source}", f"--workdir={folder}")
    assert f"starting from the weights of {source}, checkpoint 300\n" in done.stderr
    return Run(folder)


def test_a_run_starts_from_the_weights_and_the_vocabulary_of_another_run(source, started):
    loaded = load_trained(Run(source))
    assert started.result["init_from"] == str(source)
    assert started.result["identity"]["initial weights"] == loaded.params_sha256
    assert started.result["identity"]["vocabulary"] == loaded.tokenizer.sha256
    loss_of_random_weights = math.log(loaded.config.data.vocab_size)
    assert read_metrics(started.folder)[0]["loss"] < loss_of_random_weights / 2


def test_weights_of_another_model_or_vocabulary_are_refused(smoke, source, tmp_path):
    changes = {"model.num_heads": 1, "data.vocab_size": 90, "model.dropout_rate": 0.3}
    flags = [f"--config.{field}={value}" for field, value in changes.items()]
    line = refuse("train", *smoke, *flags, f"--init_from={source}", f"--workdir={tmp_path}/a")
    assert line == (
        f"the weights of {source} do not fit this config: model.num_heads is 2 there, 1 here; "
        "data.vocab_size is 300 there, 90 here; set the same values here"
    )
    assert not (tmp_path / "a").exists()


def test_a_run_cannot_take_the_weights_of_another_run_after_its_start(trained, source):
    line = refuse("train", f"--init_from={source}", f"--workdir={trained}")
    assert line.startswith(f"{trained} did not start from the present weights of {source}; leave out ")


def test_a_run_that_was_killed_before_its_first_checkpoint_does_not_start_from_random_weights(
    source, started, tmp_path
):
    run, own_source = Run(tmp_path / "killed"), shutil.copytree(source, tmp_path / "source")
    shutil.copytree(started.folder, run.folder)
    shutil.rmtree(run.folder / "checkpoints")
    result = started.result | {"init_from": str(own_source)}
    run.write_result(**result | {"status": "running", "seconds": None})
    assert refuse("train", f"--workdir={run.folder}").endswith(f"add --init_from={own_source}")
    call("train", f"--init_from={own_source}", f"--workdir={run.folder}")
    assert run.result["params_sha256"] == result["params_sha256"]
    shutil.rmtree(own_source)
    assert "is already trained" in call("train", f"--workdir={run.folder}").stdout


def test_a_run_that_was_killed_after_its_config_was_written_knows_its_source(
    smoke, source, tmp_path, monkeypatch
):
    run = Run(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(train, "_train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call("train", *smoke, f"--init_from={source}", f"--workdir={run.folder}")
    assert (run.folder / "config.json").exists()
    assert refuse("train", f"--workdir={run.folder}").endswith(f"add --init_from={source}")


def test_a_run_folder_that_is_a_link_to_nothing_is_refused(smoke, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "missing")
    line = refuse("train", *smoke, f"--workdir={tmp_path}/run")
    assert line == f"{tmp_path}/run is a link to nothing; delete it or name another folder"


def test_a_run_folder_may_have_the_name_of_a_scheme(smoke, tmp_path):
    """TensorBoard's writer would take a relative path such as s3:a for an address."""
    config = smoke[0].replace("--config=", f"--config={ROOT}/")
    call("train", config, *smoke[1:], "--config.train.steps=1", "--workdir=s3:a", cwd=tmp_path)
    assert list((tmp_path / "s3:a/tensorboard").iterdir())
