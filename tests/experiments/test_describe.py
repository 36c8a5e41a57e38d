"""Costs of a config, compared with the paper, formulas and XLA, and the command that prints the costs."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.config_files import load_module
from experiments.costs import (
    VOCABULARY_NOTE,
    count_parameters,
    describe,
    parameters_by_module,
    trace_passes,
)
from tests.support.commands import ROOT, call, refuse
from transformer.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig, from_dict, to_dict
from transformer.model import TEXT_KINDS, build_model, init_params, parameter_shapes
from transformer.model.flops import matmul_flops
from transformer.tasks import resolve
from transformer.tasks.translation import Translation, translation_loss
from transformer.training.parallelism import Single
from transformer.training.train_step import init_state, make_train_step
from transformer.training.trainable import Hyperparameters

TABLE_3 = load_module(str(ROOT / "configs/table3.py"), "config")
MILLIONS = {  # column "params x1e6" of Table 3; rows that are missing here equal base
    "base": 65, "B-dk16": 58, "B-dk32": 60, "C-N2": 36, "C-N4": 50, "C-N8": 80, "C-d256": 28, "C-d1024": 168,
    "C-ff1024": 53, "C-ff4096": 90, "big": 213,
}  # fmt: skip


def row_config(row):
    values = TABLE_3.get_config(row).to_dict()
    values["data"]["vocab_size"] = 40_500
    return resolve(from_dict(values))


@functools.cache
def row_parameters(row):
    return count_parameters(row_config(row))


def difference_in_paper(row):
    """The difference in parameters from base in Table 3; the tolerance covers the rounding of the paper."""
    tolerance = 5e6 if row == "big" else 1e6
    return pytest.approx((MILLIONS.get(row, 65) - 65) * 1e6, abs=tolerance)


@pytest.mark.parametrize("row", ["B-dk16", "C-N2", "C-d256", "C-ff1024", "big"])
def test_a_row_has_the_parameters_of_the_paper(row):
    """One row for each size that the paper varies; the next test has all rows."""
    assert row_parameters(row) - row_parameters("base") == difference_in_paper(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE_3.ROWS)
def test_a_row_departs_from_the_paper_only_in_its_vocabulary(row):
    costs = describe(row_config(row))
    assert costs["parameters"] - row_parameters("base") == difference_in_paper(row)
    assert set(costs["difference"]) == {*TABLE_3.ROWS[row].paper, "data.vocab_size"}
    assert [line.split()[0] for line in costs["departures"]] == ["data.vocab_size"]
    assert costs["notes"] == [VOCABULARY_NOTE]


def test_the_figures_in_the_vocabulary_note_are_correct():
    for row, vocab_size, millions in (
        ("base", 37_000, 63.0),
        ("base", 40_500, 64.8),
        ("big", 40_500, 217.8),
        ("big", 36_000, 213.1),
    ):
        embedding = (vocab_size - 40_500) * row_config(row).model.d_model  # the one matrix of the vocabulary
        assert round((row_parameters(row) + embedding) / 1e6, 1) == millions
    for figure in ("37,000", "63.0M", "65M", "40,500", "217.8M", "36,000", "213M"):
        assert figure in VOCABULARY_NOTE


def small(accumulation=1, rows=4, length=12, **changes) -> ExperimentConfig:
    sizes = {"num_layers": 2, "d_model": 22, "d_ff": 11, "num_heads": 3, "d_k": 5, "d_v": 7} | changes
    return ExperimentConfig(
        model=ModelConfig(**sizes),
        data=DataConfig(vocab_size=13, row_length=length),
        train=TrainConfig(batch_tokens=rows * length - 1, accumulation=accumulation),
    )


def products(n, encoder, decoder, m=22, d=15, e=21, f=11, v=13):
    """Multiplications in the forward pass of one row of n tokens. d is num_heads * d_k; e is num_heads * d_v.

    A training step has three times as many: a product has two factors, and the gradient of each factor is
    another product of the same size.
    """
    attention = 2 * n * m * (d + e) + n * n * (d + e)
    feed_forward = 2 * n * m * f
    return encoder * (attention + feed_forward) + decoder * (2 * attention + feed_forward) + n * m * v


def train_step(config, rows):
    """The step function that training uses, and the shapes of its arguments."""
    model = build_model(config.model, config.data.vocab_size)
    state = jax.eval_shape(lambda: init_state(init_params(model, 0), config))
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = Translation.full_rows(config, rows)
    function = make_train_step(functools.partial(translation_loss, model), config, Single())
    return function, (state, batch, key, Hyperparameters.from_config(config))


@pytest.mark.parametrize(("accumulation", "rows"), [(1, 4), (3, 6)])
def test_flops_of_a_training_step_equal_a_formula(accumulation, rows):
    """XLA counts as many in the step function. Accumulation in three parts pads four rows to six."""
    config = small(accumulation, num_layers=1)
    function, arguments = train_step(config, rows)
    flops = describe(config)["flops_per_step"]
    formula = 3 * 2 * rows * products(12, encoder=1, decoder=1)
    assert flops == formula == matmul_flops(function, *arguments)


def test_flops_of_stacks_of_different_depths_equal_a_formula():
    costs = describe(small(encoder_layers=2, decoder_layers=1))
    assert costs["flops_per_step"] == 3 * 2 * 4 * products(12, encoder=2, decoder=1)


def test_flops_of_a_chunked_loss_include_every_chunk():
    """The loss is a scan over two chunks of 550 tokens."""
    costs = describe(small(rows=11, length=100, num_layers=1))
    assert costs["flops_per_step"] == 3 * 2 * 11 * products(100, encoder=1, decoder=1)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"residual": "pre_norm", "feed_forward": "swiglu"}], ids=str)
def test_flops_of_a_step_without_a_scan_equal_those_of_xla(changes):
    """XLA also counts norms, softmax, dropout and Adam, which cost little beside products of this size."""
    config = ExperimentConfig(
        model=ModelConfig(num_layers=1, d_model=512, d_ff=2_048, num_heads=4, **changes),
        data=DataConfig(vocab_size=4_000, row_length=64),
        train=TrainConfig(batch_tokens=1_024),
    )
    costs = describe(config)
    function, arguments = train_step(config, costs["step"]["rows"])
    flops = function.lower(*arguments).compile().cost_analysis()["flops"]
    assert costs["flops_per_step"] == pytest.approx(flops, rel=0.05)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_parameters_of_modules_sum_to_the_total(kind):
    costs = describe(small(kind=kind, num_layers=1))
    assert sum(costs["parameters_by_module"].values()) == costs["parameters"]
    modules = {name.split("/")[0] for name in costs["parameters_by_module"]}
    assert modules == {"embedding", "decoder"} | ({"encoder"} if kind != "decoder_only" else set())
    assert costs["flops_per_step"] > 0
    assert costs["memory_bytes"]["activations"] > 0


def test_parameters_of_modules_equal_a_formula():
    modules = parameters_by_module(parameter_shapes(build_model(small().model, 13)))
    m, f, d, e, v = 22, 11, 15, 21, 13
    assert modules["embedding"] == v * m
    for layer in ("encoder/layers_0", "encoder/layers_1", "decoder/layers_0", "decoder/layers_1"):
        assert modules[f"{layer}/self_attention"] == 2 * m * (d + e)
        assert modules[f"{layer}/feed_forward"] == 2 * m * f + m + f
        assert modules[f"{layer}/feed_forward_residual"] == 2 * m
    assert modules["decoder/layers_1/cross_attention"] == 2 * m * (d + e)


def test_memory_of_a_training_step_follows_from_parameters_and_rows():
    costs = describe(small(num_layers=1))
    memory, parameters = costs["memory_bytes"], 4 * costs["parameters"]
    assert memory["parameters"] == memory["gradients"] == parameters
    assert 2 * parameters < memory["optimizer"] < 2 * parameters + 64  # two moments, and counters
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    parts = describe(small(num_layers=1, accumulation=2))["memory_bytes"]
    assert parts["gradients"] == 2 * parameters  # the accumulated gradients, and those of the current part
    larger = describe(small(num_layers=1, rows=8))["memory_bytes"]
    # The ratios are below 2, because the size of the output matrix stays the same.
    assert larger["activations"] > 1.8 * memory["activations"]
    assert parts["activations"] < memory["activations"] / 1.8


def test_kept_bytes_are_those_that_the_backward_pass_reads():
    """For sin(x w), the forward pass keeps the 11 * 7 numbers cos(x w). For x w, it keeps only the inputs."""
    w, x = jax.ShapeDtypeStruct((5, 7), jnp.float32), jax.ShapeDtypeStruct((11, 5), jnp.float32)
    passes = trace_passes(lambda w, x: (jnp.sum(jnp.sin(x @ w)), None), w, x)
    assert passes == (2 * 2 * 11 * 5 * 7, 11 * 7 * 4)
    assert trace_passes(lambda w, x: (jnp.sum(x @ w), None), w, x).kept_bytes == 0


def test_a_description_is_json_data():
    costs = describe(small(num_layers=1))
    assert json.loads(json.dumps(costs)) == costs
    assert set(costs) == {
        "parameters", "parameters_by_module", "resolved", "step", "flops_per_step", "memory_bytes",
        "difference", "departures", "notes",
    }  # fmt: skip
    assert costs["resolved"] == {
        "model.encoder_layers": 1, "model.decoder_layers": 1, "model.d_k": 5, "model.d_v": 7,
        "optimizer.learning_rate": (22 * 4_000) ** -0.5,
    }  # fmt: skip
    assert costs["step"] == {"vocab_size": 13, "rows": 4, "row_length": 12, "parts": 1}
    assert costs["difference"]["model.d_v"] == [None, 7]
    assert costs["notes"] == []


def test_fields_without_effect_are_noted():
    values = to_dict(small()) | {
        "model": {"kind": "recurrent", "num_heads": 3, "d_model": 12, "cell": "gru", "num_layers": 1}
    }
    assert describe(from_dict(values))["notes"] == ["fields without effect in this config: model.num_heads"]
    values["model"] = {"cell": "gru", "d_model": 8, "num_layers": 1, "equal_parameters": True}
    values["decode"] = {"sampling": True, "beam_size": 3, "length_penalty": 0.7}
    unread = "model.equal_parameters, model.cell, decode.beam_size"
    assert f"fields without effect in this config: {unread}" in describe(from_dict(values))["notes"]


def test_the_command_prints_json():
    config = "--config=configs/table3.py:C-N2,number_words"
    costs = json.loads(call("describe", config, "--config.data.options.lists=9", "--json").stdout)
    assert costs["parameters"] == sum(costs["parameters_by_module"].values())
    assert costs["difference"]["model.num_layers"] == [6, 1]
    assert costs["difference"]["data.options.lists"] == [50_000, 9]
    assert costs["resolved"]["model.d_k"] == 32
    assert any(line.startswith("model.num_layers is 1; the paper's: 6") for line in costs["departures"])


def test_the_command_prints_tables(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    done = call("describe", "--config=configs/t2t.py:smoke", "--config.model.encoder_layers=3")
    for text in (
        "Departures from the paper",
        "layers_0 to layers_2, each",
        "model.residual is 'pre_norm'",
        "model.encoder_layers is 3 and model.decoder_layers 1",
        "optimizer state",
    ):
        assert text in done.stdout
    assert max(map(len, done.stdout.split("\n"))) <= 100
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/base.py", "--config.model.positions=lerned"], "model.positions is 'lerned'; it must be one of: "),
        (["--config=configs/base.py", "--config.model.d_model=100"], "model.d_model is 100; it must be a multiple of"),
        (["--config=configs/table3.py:A-h1,C-N2"], "the config argument has A-h1 and C-N2; give only one of them"),
        (["--config=configs/table3.py:C-N3"], "the config argument is 'C-N3'; it must be one of: "),
        (["--config=configs/base.py", "--set=model.d_ff=3"], "unknown flag --set; write --config.model.d_ff=3 for this command"),
        ([], "--config is missing; add --config=VALUE"),
    ],
)  # fmt: skip
def test_wrong_flags_give_a_one_line_error(flags, message):
    assert refuse("describe", *flags).startswith(message)
