"""A run: resumed equals uninterrupted, learning is recorded, and the first losses never move unseen."""

import dataclasses
import json
import pathlib

import jax
import pytest

from configs import base, t2t
from transformer.config import ExperimentConfig, OptimizerConfig, TrainConfig, TransformerConfig, UserError
from transformer.data import plan
from transformer.data.corpus import Corpus
from transformer.data.tokenizer import Tokenizer
from transformer.training.checkpoints import Checkpoints
from transformer.training.loop import Patience, train
from transformer.training.metrics import read_metrics
from transformer.training.setup import set_up

GOLDEN = pathlib.Path(__file__).parent / "golden.json"


class Silent:
    """Observes, and stops after a step."""

    def __init__(self, stop_after=None):
        self.stop_after, self.seen, self.records = stop_after, 0, []

    def step(self, step):
        self.seen = step

    def record(self, record):
        self.records.append(record)

    def should_stop(self):
        return self.seen == self.stop_after


@pytest.fixture
def config(number_words):
    return ExperimentConfig(
        model=TransformerConfig(num_layers=1, d_model=16, d_ff=32, num_heads=2, dropout_rate=0.1),
        data=number_words,
        optimizer=OptimizerConfig(warmup_steps=10, learning_rate=5e-3),
        train=TrainConfig(
            steps=20, batch_tokens=128, log_every=1, validate_every=8, keep_last=2, placement="jit"
        ),
    )


def run(config, folder, stop_after=None):
    folder.mkdir(exist_ok=True)
    observer = Silent(stop_after)
    return train(config, folder, observer, observer.should_stop), observer


def losses(folder):
    return [record["loss"] for record in read_metrics(folder)]


def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path):
    whole, _ = run(config, tmp_path / "whole")
    first, _ = run(config, tmp_path / "parts", stop_after=5)
    assert (first.step, first.finished) == (5, False)
    second, _ = run(config, tmp_path / "parts", stop_after=13)
    assert (second.step, second.finished) == (13, False)
    third, observer = run(config, tmp_path / "parts")
    assert (third.step, third.finished) == (20, True)
    assert observer.records[0]["step"] == 14
    assert third.params_sha256 == whole.params_sha256
    assert third.tokens_seen == whole.tokens_seen
    assert third.validation == whole.validation
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    again, observer = run(config, tmp_path / "parts")
    assert again == third
    assert observer.records == []


def test_a_run_cut_off_between_checkpoints_repeats_what_was_lost(config, tmp_path):
    """As after kill -9: metrics.jsonl is ahead of the last checkpoint."""
    run(config, tmp_path / "a")
    stopped, _ = run(config, tmp_path / "b", stop_after=8)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "kind": "train", "loss": 99.0}\n{"step": 10, "ki')
    run(config, tmp_path / "b")
    assert stopped.step == 8
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


def test_patience_ends_a_run_that_no_longer_learns(config, tmp_path):
    """Weights that stand still: the first validation is the best, and three more are too many."""
    config = dataclasses.replace(
        config,
        optimizer=OptimizerConfig(learning_rate=1e-30),
        train=dataclasses.replace(config.train, validate_every=2, patience=3),
    )
    whole, _ = run(config, tmp_path / "whole")
    assert (whole.step, whole.finished) == (8, True)
    first, _ = run(config, tmp_path / "parts", stop_after=5)
    assert (first.step, first.finished) == (5, False)
    second, _ = run(config, tmp_path / "parts")
    assert second == whole
    again, observer = run(config, tmp_path / "parts")
    assert again == whole
    assert observer.records == []


def test_patience_is_restored_by_a_lower_loss():
    patience = Patience(2)
    for loss, lost in ((3.0, False), (3.0, False), (2.9, False), (2.95, False), (2.9, True)):
        patience.see(loss)
        assert patience.lost is lost


def test_records(config, tmp_path):
    outcome, observer = run(config, tmp_path)
    records = read_metrics(tmp_path)
    assert records == observer.records
    assert [record["step"] for record in records if record["kind"] == "validation"] == [8, 16, 20]
    training = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in training] == list(range(1, 21))
    assert training[-1]["loss"] < training[0]["loss"]
    assert training[-1]["tokens_seen"] == outcome.tokens_seen
    for name in ("nll", "perplexity", "perplexity_per_character", "accuracy", "learning_rate", "gradient_norm",
                 "tokens_per_second", "padding", "seconds_left", "epoch"):  # fmt: skip
        assert all(record[name] >= 0 for record in training), name
    assert sum(record["padding"] for record in training) / len(training) < 0.1
    assert list((tmp_path / "tensorboard").iterdir())
    assert Checkpoints(tmp_path / "checkpoints").steps == [16, 20]


def test_devices_change_nothing(config, tmp_path):
    """pmap on eight virtual devices, dropout on: losses equal up to the order of float32 sums."""
    run(config, tmp_path / "jit")
    parallel = dataclasses.replace(config, train=dataclasses.replace(config.train, placement="pmap"))
    run(parallel, tmp_path / "pmap")
    assert losses(tmp_path / "pmap") == pytest.approx(losses(tmp_path / "jit"), rel=1e-4)


@pytest.fixture
def recurrent(config, monkeypatch):
    """On bucketed batches, of two shapes: each is compiled."""
    monkeypatch.setattr(plan, "SHAPES", 2)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, kind="recurrent_attention", cell="gru"),
        train=dataclasses.replace(config.train, steps=8),
    )


def test_what_cannot_pack_gets_one_example_a_row(recurrent, tmp_path):
    task = set_up(recurrent, tmp_path)
    assert len({task.plan.shape(step) for step in range(50)}) == 2
    for rows in (task.batches[0].source, task.batches[0].target):
        assert all(len(set(row[row > 0])) <= 1 for row in rows.segments)


@pytest.mark.slow
def test_a_recurrent_run_resumes_bit_for_bit(recurrent, tmp_path):
    config = recurrent
    whole, _ = run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop_after=3)
    resumed, _ = run(config, tmp_path / "parts")
    assert resumed.params_sha256 == whole.params_sha256
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def of_preset(config, preset):
    """A small model with all that a preset says besides its sizes; its peak at this warm-up."""
    values = preset.get_config().to_dict()
    sizes = {"num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2, "dropout_rate": 0.1}
    optimizer = {"warmup_steps": 10, "learning_rate": 5e-3}
    return dataclasses.replace(
        config,
        model=TransformerConfig(**values["model"] | sizes),
        optimizer=OptimizerConfig(**values["optimizer"] | optimizer),
    )


@pytest.mark.parametrize("preset", [base, t2t], ids=["paper", "t2t"])
def test_golden(config, tmp_path, preset):
    """The first 20 losses of a seeded run. Rewrite golden.json only for a change that is meant, and say why."""
    run(of_preset(config, preset), tmp_path)
    ours = [record["loss"] for record in read_metrics(tmp_path) if record["kind"] == "train"]
    golden = json.loads(GOLDEN.read_text())
    assert ours == pytest.approx(golden[preset.__name__.removeprefix("configs.")], abs=1e-4)


def test_another_tokenizer_is_refused(config, tmp_path):
    """One of the same size, so that nothing but its digest tells."""
    run(config, tmp_path, stop_after=8)
    sources, targets = Corpus(config.data).texts("test_long")
    other = Tokenizer.train(sources + targets, "bpe", config.data.vocab_size)
    (tmp_path / "tokenizer.model").write_bytes(other.model)
    with pytest.raises(UserError, match="tokenizer.model is not the one its checkpoints were trained with"):
        run(config, tmp_path)


def test_other_data_is_refused(config, tmp_path):
    run(config, tmp_path, stop_after=8)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, lists=200))
    with pytest.raises(
        UserError, match=r"was trained on number_words/en-de.300/.*; the data is now .*en-de.200"
    ):
        run(other, tmp_path)


def test_divergence_is_one_clear_line(config, tmp_path):
    wild = dataclasses.replace(config, optimizer=OptimizerConfig(warmup_steps=1, learning_rate=1e38))
    with pytest.raises(UserError, match="training diverged before step .*; lower optimizer.learning_rate"):
        run(wild, tmp_path)
    assert all(record["loss"] < float("inf") for record in read_metrics(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_positions": 20}, r"split 'train' has a source of \d+ pieces, but .*'learned' ends at 20"),
        ({"positions": "x"}, "model.positions is 'x'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(config, tmp_path, changes, message):
    model = dataclasses.replace(config.model, **{"positions": "learned", **changes})
    with pytest.raises(UserError, match=message):
        run(dataclasses.replace(config, model=model), tmp_path)


def test_a_table_need_not_reach_the_end_of_a_row(config, tmp_path):
    """Rows of 64 pieces hold several lists, each shorter than the table."""
    model = dataclasses.replace(config.model, positions="learned", max_positions=60)
    outcome, _ = run(dataclasses.replace(config, model=model), tmp_path, stop_after=2)
    assert outcome.step == 2


def test_an_evaluation_sentence_past_the_table_is_refused(config, tmp_path):
    model = dataclasses.replace(config.model, positions="learned", max_positions=20)
    data = dataclasses.replace(config.data, row_length=20)
    with pytest.raises(UserError, match=r"split 'validation' has a source of \d+ pieces, but .* ends at 20"):
        run(dataclasses.replace(config, model=model, data=data), tmp_path)


def test_the_first_device_is_a_cpu():
    """The golden run and the bit-for-bit claims are about CPU."""
    assert jax.devices()[0].platform == "cpu"
