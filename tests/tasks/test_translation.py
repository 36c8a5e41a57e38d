"""The translation task: golden losses, resumed runs, and configs that are refused before training."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import base, t2t
from tests.support.training import run_or_resume
from transformer.config import ExperimentConfig, ModelConfig, OptimizerConfig, TrainConfig, UserError
from transformer.data import batching, bucketing
from transformer.data.corpus import Corpus
from transformer.data.tokenizer import Tokenizer
from transformer.tasks import TASKS, open_task, resolve
from transformer.tasks.translation import summarize
from transformer.training.checkpoints import Checkpoints
from transformer.training.metric_log import read_metrics
from transformer.training.trainable import Hyperparameters

GOLDEN = Path(__file__).parent / "golden.json"


@pytest.fixture(scope="module", autouse=True)
def _one_shape():
    """Pads all validation batches to one length, since each shape is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "MIN_BUCKET_LENGTH", 64)
        yield


def small_config(number_words):
    """A run of 20 steps on 300 lists of number words, with one layer and d_model 16."""
    return ExperimentConfig(
        model=ModelConfig(num_layers=1, d_model=16, d_ff=32, num_heads=2, dropout_rate=0.1),
        data=number_words,
        optimizer=OptimizerConfig(warmup_steps=10, learning_rate=5e-3),
        train=TrainConfig(
            steps=20, batch_tokens=128, log_every=1, validate_every=8, keep_last=2, parallelism="single"
        ),
    )


@pytest.fixture
def config(number_words):
    return small_config(number_words)


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if record["kind"] == "train"]


@pytest.mark.slow
def test_the_loss_on_the_source_counts_its_tokens_in_training_only(config, tmp_path):
    model = ModelConfig(num_layers=1, d_model=16, d_ff=32, num_heads=2, dropout_rate=0.0, kind="decoder_only")
    key, totals = jax.random.key(0), {}
    for on_source in (False, True):
        changes = {"model": model, "train": dataclasses.replace(config.train, loss_on_source=on_source)}
        task = open_task(resolve(dataclasses.replace(config, **changes)), tmp_path)
        params, hyperparameters = task.init(0), Hyperparameters.from_config(task.config)
        batch = jax.tree.map(jnp.asarray, next(task.batches(0)))
        totals[on_source] = [
            jax.tree.map(float, task.loss(params, batch, dropout_key, hyperparameters)[1])
            for dropout_key in (key, None)
        ]
    num_source, num_target = ((side.segment_ids != 0).sum() for side in (batch.source, batch.target))
    trained, validated = totals[True]
    assert trained["count"] == num_source + num_target
    assert validated == totals[False][1]
    assert validated["count"] == totals[False][0]["count"] == num_target
    assert trained["nll"] > validated["nll"]
    assert "perplexity_per_character" not in task.summary(trained)
    assert "perplexity_per_character" in task.summary(validated)
    assert 0 < task.summary(trained)["padding"] == task.summary(validated)["padding"] < 1


def test_a_loss_on_a_source_that_sees_itself_is_refused(config):
    model = dataclasses.replace(config.model, kind="decoder_only", prefix="bidirectional")
    refused = dataclasses.replace(
        config, model=model, train=dataclasses.replace(config.train, loss_on_source=True)
    )
    with pytest.raises(
        UserError, match="train.loss_on_source is True, but with model.prefix='bidirectional' a"
    ):
        resolve(refused)


def with_sizes(config, preset):
    """The config with the model and the optimizer of a preset, except for sizes and the learning rate."""
    values = preset.get_config().to_dict()
    sizes = {"num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2, "dropout_rate": 0.1}
    optimizer = {"warmup_steps": 10, "learning_rate": 5e-3}
    return dataclasses.replace(
        config,
        model=ModelConfig(**values["model"] | sizes),
        optimizer=OptimizerConfig(**values["optimizer"] | optimizer),
    )


@pytest.fixture(scope="module")
def stopped_run(number_words, tmp_path_factory):
    """The config and the folder of the golden run of `base`, which was stopped after 13 steps."""
    config, folder = with_sizes(small_config(number_words), base), tmp_path_factory.mktemp("stopped")
    assert run_or_resume(config, folder, stop_after=13).step == 13
    return config, folder


@pytest.mark.parametrize("preset", [base, pytest.param(t2t, marks=pytest.mark.slow)], ids=["base", "t2t"])
def test_the_first_losses_of_a_seeded_run_equal_the_golden_losses(config, stopped_run, tmp_path, preset):
    """Rewrite golden.json only for an intended change, and explain the change in the commit.

    The base run is stopped and resumed, which must not change its losses.
    """
    if preset is base:
        shutil.copytree(stopped_run[1], tmp_path, dirs_exist_ok=True)
    run_or_resume(with_sizes(config, preset), tmp_path)
    golden = json.loads(GOLDEN.read_text())[preset.__name__.removeprefix("configs.")]
    # Processors differ in the order in which they sum.
    assert losses(tmp_path) == pytest.approx(golden, abs=1e-4)
    records = read_metrics(tmp_path)
    validations = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validations] == [8, 16, 20]
    assert validations[-1]["nll"] < validations[0]["nll"]
    for name in ("nll", "perplexity", "perplexity_per_character", "accuracy", "padding"):
        assert all(record[name] >= 0 for record in records), name
    padding = [record["padding"] for record in records if record["kind"] == "train"]
    assert sum(padding) / len(padding) < 0.1
    assert Checkpoints(tmp_path / "checkpoints").steps == [16, 20]


def test_z_loss_is_part_of_the_loss_but_not_of_the_nll(config, tmp_path):
    """Without label smoothing, the two would be equal without z-loss."""
    options = dataclasses.replace(config.train, z_loss=0.1, label_smoothing=0.0)
    task = open_task(dataclasses.replace(config, train=options), tmp_path)
    arguments = next(task.batches(0)), None, Hyperparameters.from_config(task.config)
    _, totals = jax.jit(task.loss)(task.init(0), *arguments)
    assert totals["loss"] > totals["nll"] + 0.1 * totals["count"]


@pytest.fixture
def recurrent(config, monkeypatch):
    """The config of a recurrent model on bucketed batches of two shapes, each of which is compiled."""
    monkeypatch.setattr(bucketing, "MAX_SHAPES", 2)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, kind="recurrent_attention", cell="gru"),
        train=dataclasses.replace(config.train, steps=8),
    )


def test_a_model_that_cannot_pack_gets_one_example_per_row(recurrent, tmp_path):
    task = open_task(recurrent, tmp_path)
    assert len({task.plan.shape(step) for step in range(50)}) == 2
    batch = next(task.batches(0))
    for side in (batch.source, batch.target):
        assert all(len(set(row[row > 0])) <= 1 for row in side.segment_ids)


@pytest.mark.slow
def test_a_recurrent_run_resumes_bit_for_bit(recurrent, tmp_path):
    whole = run_or_resume(recurrent, tmp_path / "whole")
    run_or_resume(recurrent, tmp_path / "parts", stop_after=3)
    resumed = run_or_resume(recurrent, tmp_path / "parts")
    assert resumed.params_sha256 == whole.params_sha256
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_may_continue_on_other_devices(config, tmp_path):
    """Mesh, one device, `pmap` and another mesh take turns; the losses are those of one device."""
    run_or_resume(config, tmp_path / "single")
    turns = [
        ({"parallelism": "mesh", "fsdp": 2, "tensor": 2, "diagnostics": True}, 5),
        ({"parallelism": "single"}, 10),
        ({"parallelism": "pmap"}, 15),
        ({"parallelism": "mesh", "fsdp": 8}, None),
    ]
    for changes, stop_after in turns:
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
        run_or_resume(changed, tmp_path / "turns", stop_after)
    assert losses(tmp_path / "turns") == pytest.approx(losses(tmp_path / "single"), rel=1e-4)


def test_a_row_may_be_longer_than_the_position_table(config, tmp_path):
    """Rows of 64 tokens hold several lists. Each list is shorter than the table, which has 60 positions."""
    model = dataclasses.replace(config.model, positions="learned", max_positions=60)
    task = open_task(resolve(dataclasses.replace(config, model=model)), tmp_path)
    assert task.plan.source_length == 64


def test_a_different_vocabulary_is_refused(stopped_run, tmp_path):
    """The vocabulary has the same size as the original, so only its digest differs."""
    config, folder = stopped_run
    path = folder / "tokenizer.model"
    original = path.read_bytes()
    sources, targets = Corpus(config.data).texts("test_long")
    path.write_bytes(Tokenizer.train(sources + targets, "bpe", config.data.vocab_size).model)
    try:
        with pytest.raises(UserError, match="is not the vocabulary that the checkpoints were trained with"):
            run_or_resume(config, folder)
    finally:
        path.write_bytes(original)


def test_different_data_is_refused(stopped_run):
    config, folder = stopped_run
    data = dataclasses.replace(config.data, options={"lists": 200})
    with pytest.raises(UserError, match="config.json was changed after the training; restore config.json"):
        run_or_resume(dataclasses.replace(config, data=data), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_positions": 20},
            r"split 'train' has a source of \d+ tokens, but .*'learned' has only 20 positions; increase",
        ),
        ({"positions": "x"}, "model.positions is 'x'"),
    ],
)
def test_an_unusable_model_is_refused_before_training(config, tmp_path, changes, message):
    model = dataclasses.replace(config.model, **{"positions": "learned", **changes})
    with pytest.raises(UserError, match=message):
        run_or_resume(dataclasses.replace(config, model=model), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_validation_sentence_beyond_the_position_table_is_refused(config, tmp_path):
    model = dataclasses.replace(config.model, positions="learned", max_positions=20)
    data = dataclasses.replace(config.data, row_length=20)
    with pytest.raises(
        UserError, match=r"split 'validation' has a source of \d+ tokens, but .* has only 20 positions"
    ):
        run_or_resume(dataclasses.replace(config, model=model, data=data), tmp_path)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"norm": "x"}, "model.norm is 'x'; it must be one of: dynamic_tanh, layer_norm, rms_norm"),
        ("optimizer", {"name": "x"}, "optimizer.name is 'x'; it must be one of: adam, adamw, muon, sgd"),
        ("optimizer", {"schedule": "x"}, "optimizer.schedule is 'x'; it must be one of"),
        (
            "optimizer",
            {"schedule": "cosine", "warmup_steps": 30},
            "optimizer.warmup_steps is 30; it must be at most",
        ),
        (
            "train",
            {"parallelism": "x"},
            "train.parallelism is 'x'; it must be one of: auto, mesh, pmap, single",
        ),
        ("decode", {"penalty": "x"}, "decode.penalty is 'x'; it must be one of: length, wu"),
        ("data", {"options": {"files": "x"}}, "data.options.files is not an option of number_words"),
    ],
)
def test_resolve_checks_every_name(config, section, values, message):
    changed = dataclasses.replace(getattr(config, section), **values)
    with pytest.raises(UserError, match=message):
        resolve(dataclasses.replace(config, **{section: changed}))


def test_resolve_completes_the_options_of_the_data_set(config):
    data = dataclasses.replace(config.data, options={})
    assert resolve(dataclasses.replace(config, data=data)).data.options == {"lists": 50_000}


def test_an_unknown_task_is_refused(config):
    with pytest.raises(
        UserError,
        match="task is 'x'; it must be one of: image_classification, language_modeling, translation",
    ):
        resolve(dataclasses.replace(config, task="x"))


def test_every_task_implements_the_interface():
    for task in TASKS.values():
        assert not getattr(task, "__abstractmethods__", None)


def test_the_tests_run_on_a_cpu():
    """Golden losses and bit-for-bit equality hold for CPUs."""
    assert jax.devices()[0].platform == "cpu"


def test_summary_by_hand():
    """Perplexities and nll come from the plain loss, not from the smoothed one."""
    totals = {"loss": 30.0, "nll": 20.0, "count": 10.0, "characters": 40.0, "unknown": 0.0, "correct": 5.0}
    totals |= {"tokens": 16.0, "slots": 20.0}
    summary = summarize(totals)
    assert summary == pytest.approx(
        {
            "loss": 3,
            "nll": 2,
            "perplexity": math.e**2,
            "perplexity_per_character": math.e**0.5,
            "accuracy": 0.5,
            "padding": 0.2,
        }
    )
    # One unknown token may stand for several characters, so the mean per character has no meaning.
    assert "perplexity_per_character" not in summarize(totals | {"unknown": 1.0})
