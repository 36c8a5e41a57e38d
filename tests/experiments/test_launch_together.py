"""The command `launch` with several runs in one program (`--vectorize`)."""

import re

import pytest

from experiments.study.results import read_study
from tests.support.commands import call, refuse
from transformer.json_files import read_json
from transformer.training.metric_log import read_metrics

TOGETHER = """
CONFIG = "configs/number_words.py:smoke"
VARIANTS = {
    "slow": {"optimizer.learning_rate": 1e-3, "model.dropout_rate": 0.2},
    "fast": {"optimizer.learning_rate": 1e-2, "train.label_smoothing": 0.0},
}
SPLITS = ("test",)
METRICS = ("chrf",)
"""


@pytest.mark.slow
def test_runs_in_one_program_equal_the_runs_alone(study_flags, in_this_process, tmp_path):
    """Two variants with two seeds, 50 steps, dropout on. Batched products round differently."""
    (tmp_path / "rates.py").write_text(TOGETHER)
    sweep, root, _, *sets = study_flags
    flags = (sweep, "--seeds=2", *sets, "--set=train.steps=50", "--set=train.validate_every=25")
    done = call("launch", *flags, f"--root={tmp_path}/together", "--vectorize=4")
    assert re.search(r"\[1/1\] slow/0-\w+ and 3 more: done", done.stdout)
    assert "on a CPU, runs in one program are slower" in done.stderr
    call("launch", *flags, root)
    alone = {path.parent.name: path.parent for path in (tmp_path / "study").glob("*/*/result.json")}
    together = {path.parent.name: path.parent for path in (tmp_path / "together").glob("*/*/result.json")}
    assert together.keys() == alone.keys()
    for name, folder in together.items():
        losses, expected = (
            [record["loss"] for record in read_metrics(place) if record["kind"] == "train"]
            for place in (folder, alone[name])
        )
        assert losses == pytest.approx(expected, rel=1e-3)
        assert "already trained" in call("train", f"--workdir={folder}").stdout
    assert read_study(tmp_path / "together").scores.keys() == {"slow", "fast"}


@pytest.mark.slow
def test_a_run_that_diverges_in_one_program_is_not_trained_again(study_flags, in_this_process, tmp_path):
    (tmp_path / "rates.py").write_text(TOGETHER.replace("1e-2", "1e30"))
    failed = call("launch", *study_flags, "--vectorize=2", status=1)
    assert "error: training diverged" in failed.stderr
    (result,) = (tmp_path / "study" / "fast").glob("*/result.json")
    assert read_json(result)["reason"] == "diverged"
    (result,) = (tmp_path / "study" / "slow").glob("*/result.json")
    assert read_json(result)["status"] == "done"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--executor=slurm"], "--vectorize cannot be used with Slurm or --nodes; remove it"),
        (
            ["--set=train.fsdp=2", "--set=train.parallelism=mesh"],
            "train.fsdp is 2, but runs in one program are not split; set it to 1",
        ),
        (
            ["--set=model.kind=recurrent"],
            "runs with model.kind=recurrent cannot be vectorized, because the shapes of their batches depend on "
            "the seed; train them one by one",
        ),
    ],
)
def test_studies_that_cannot_be_vectorized_are_refused(study_flags, tmp_path, flags, message):
    assert refuse("launch", *study_flags, "--vectorize=2", *flags) == message
    assert not (tmp_path / "study").exists()
