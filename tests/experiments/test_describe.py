"""What a config costs, against the paper, formulas made by hand and XLA; the command as a user types it."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.description import (
    VOCABULARIES,
    count,
    describe,
    full_rows,
    parameter_shapes,
    parameters_by_module,
)
from experiments.launcher.sweep import load_module
from transformer.config import (
    DataConfig,
    ExperimentConfig,
    TrainConfig,
    TransformerConfig,
    from_dict,
    to_dict,
)
from transformer.model import KINDS, build, init_params
from transformer.model.flops import matmul_flops
from transformer.training.losses import make_loss_fn
from transformer.training.optimizer import adam
from transformer.training.placement import Jit
from transformer.training.setup import make_hyper
from transformer.training.step import initial_state, make_train_step

ROOT = Path(__file__).parent.parent.parent
TABLE_3 = load_module(str(ROOT / "configs/table3.py"), "config")
MILLIONS = {  # PAPER, Table 3: "params x1e6"; a row that has none has base's
    "base": 65, "B-dk16": 58, "B-dk32": 60, "C-N2": 36, "C-N4": 50, "C-N8": 80, "C-d256": 28, "C-d1024": 168,
    "C-ff1024": 53, "C-ff4096": 90, "big": 213,
}  # fmt: skip


def row_config(row, vocab_size=40_500):
    values = TABLE_3.get_config(row).to_dict()
    values["data"]["vocab_size"] = vocab_size
    return from_dict(values)


@functools.cache
def parameters(row, vocab_size=40_500):
    """As `describe` counts them, without the rest of its work."""
    shapes = parameter_shapes(build(row_config(row).model, vocab_size))
    return sum(parameters_by_module(shapes).values())


def papers(row):
    """The difference from base in Table 3, and how far off its rounding may be."""
    tolerance = 5e6 if row == "big" else 1e6
    return pytest.approx((MILLIONS.get(row, 65) - 65) * 1e6, abs=tolerance)


@pytest.mark.parametrize("row", [row for row in TABLE_3.ROWS if row[0] != "D"])  # D: base's model
def test_a_row_has_as_many_parameters_as_the_paper_says(row):
    assert parameters(row) - parameters("base") == papers(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE_3.ROWS)
def test_a_row_is_described_as_the_papers(row):
    found = describe(row_config(row))
    assert found["parameters"] - parameters("base") == papers(row)
    assert set(found["difference"]) == {*TABLE_3.ROWS[row].paper, "data.vocab_size"}
    assert [line.split()[0] for line in found["departures"]] == ["data.vocab_size"]
    assert found["notes"] == [VOCABULARIES]


def test_no_one_vocabulary_fits_the_papers_column():
    """The figures of the note."""
    for row, pieces, millions in (
        ("base", 37_000, 63.0),
        ("base", 40_500, 64.8),
        ("big", 40_500, 217.8),
        ("big", 36_000, 213.1),
    ):
        assert round(parameters(row, pieces) / 1e6, 1) == millions
    for figure in ("37,000", "63.0M", "65M", "40,500", "217.8M", "36,000", "213M"):
        assert figure in VOCABULARIES


def small(accumulation=1, rows=4, length=12, **changes):
    sizes = {"num_layers": 2, "d_model": 22, "d_ff": 11, "num_heads": 3, "d_k": 5, "d_v": 7} | changes
    return ExperimentConfig(
        model=TransformerConfig(**sizes),
        data=DataConfig(vocab_size=13, row_length=length),
        train=TrainConfig(batch_tokens=rows * length - 1, accumulation=accumulation),
    )


def products(n, m=22, d=15, e=21, f=11, v=13, encoder=2, decoder=2):
    """Multiplications of a row's forward pass; d and e over all heads. Every product has a gradient for each
    factor, which costs as much again."""
    attention = 2 * n * m * (d + e) + n * n * (d + e)
    feed_forward = 2 * n * m * f
    return encoder * (attention + feed_forward) + decoder * (2 * attention + feed_forward) + n * m * v


def step_of(config):
    """The step as it is trained, and shapes of what it takes."""
    found = describe(config)["step"]
    model, optimizer = build(config.model, config.data.vocab_size), adam(config.optimizer)
    parts = config.train.accumulation
    state = jax.eval_shape(lambda: initial_state(init_params(model, 0), optimizer))
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = make_train_step(make_loss_fn(model), optimizer, 4_000, Jit(), parts)
    return step, (state, full_rows(found["rows"], found["row_length"]), key, make_hyper(config))


@pytest.mark.parametrize(("accumulation", "rows"), [(1, 4), (2, 4), (3, 6)])
def test_flops_of_a_training_step(accumulation, rows):
    """By formula, and of the step as it is trained. Four rows in three parts are padded to six."""
    config = small(accumulation)
    found = describe(config)["flops_per_step"]
    step, arguments = step_of(config)
    assert found == 3 * 2 * rows * products(12) == matmul_flops(step, *arguments)


def test_flops_of_unequal_stacks():
    found = describe(small(encoder_layers=3, decoder_layers=1))
    assert found["flops_per_step"] == 3 * 2 * 4 * products(12, encoder=3, decoder=1)


def test_flops_of_a_loss_in_several_parts():
    """A scan over two parts of 550 pieces: each iteration counts."""
    found = describe(small(rows=11, length=100, num_layers=1))
    assert found["flops_per_step"] == 3 * 2 * 11 * products(100, encoder=1, decoder=1)


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"norm_placement": "pre", "feed_forward": "swiglu"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_flops_are_those_of_xla_where_nothing_is_scanned(changes):
    """XLA also counts norms, softmax, dropout and Adam: hence sizes at which they are little beside products,
    and one part of the loss."""
    config = ExperimentConfig(
        model=TransformerConfig(num_layers=1, d_model=512, d_ff=2_048, num_heads=4, **changes),
        data=DataConfig(vocab_size=4_000, row_length=64),
        train=TrainConfig(batch_tokens=1_024),
    )
    step, arguments = step_of(config)
    cost = step.lower(*arguments).compile().cost_analysis()["flops"]
    assert describe(config)["flops_per_step"] == pytest.approx(cost, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_modules_sum_to_the_parameters(kind):
    found = describe(small(kind=kind, num_layers=1))
    assert sum(found["parameters_by_module"].values()) == found["parameters"]
    assert {name.split("/")[0] for name in found["parameters_by_module"]} == {
        "embedding", "encoder", "decoder",
    }  # fmt: skip
    assert found["flops_per_step"] > 0
    assert found["memory_bytes"]["activations"] > 0


def test_modules_by_formula():
    modules = parameters_by_module(parameter_shapes(build(small().model, 13)))
    m, f, d, e, v = 22, 11, 15, 21, 13
    assert modules["embedding"] == v * m
    for layer in ("encoder/layers_0", "encoder/layers_1", "decoder/layers_0", "decoder/layers_1"):
        assert modules[f"{layer}/self_attention"] == 2 * m * (d + e)
        assert modules[f"{layer}/feed_forward"] == 2 * m * f + m + f
        assert modules[f"{layer}/feed_forward_residual"] == 2 * m
    assert modules["decoder/layers_1/cross_attention"] == 2 * m * (d + e)


def test_memory():
    found = describe(small(num_layers=1))
    memory, parameters = found["memory_bytes"], 4 * found["parameters"]
    assert memory["parameters"] == memory["gradients"] == parameters
    assert memory["optimizer"] == 2 * parameters + 4  # two moments, and Adam counts its steps
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    parts = describe(small(num_layers=1, accumulation=2))["memory_bytes"]
    assert parts["gradients"] == 2 * parameters  # the sum, and those of the part at work
    larger = describe(small(num_layers=1, rows=8))["memory_bytes"]
    assert larger["activations"] > 1.8 * memory["activations"]  # not 2: the output matrix has one slope
    assert parts["activations"] < memory["activations"] / 1.8


def test_kept_bytes_are_what_the_backward_pass_reads():
    """sin(x w): x is an argument; the slope cos(x w) is kept, 11 * 7 numbers. x w by itself keeps nothing."""
    w, x = jax.ShapeDtypeStruct((5, 7), jnp.float32), jax.ShapeDtypeStruct((11, 5), jnp.float32)
    assert count(lambda w, x: (jnp.sum(jnp.sin(x @ w)), None), w, x) == (2 * 2 * 11 * 5 * 7, 11 * 7 * 4)
    assert count(lambda w, x: (jnp.sum(x @ w), None), w, x).kept_bytes == 0


def test_a_description_is_json_and_has_its_keys():
    found = describe(small())
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {
        "parameters", "parameters_by_module", "resolved", "step", "flops_per_step", "memory_bytes",
        "difference", "departures", "notes",
    }  # fmt: skip
    assert found["resolved"] == {
        "model.encoder_layers": 2, "model.decoder_layers": 2, "model.d_k": 5, "model.d_v": 7,
        "optimizer.learning_rate": (22 * 4_000) ** -0.5,
    }  # fmt: skip
    assert found["step"] == {"vocab_size": 13, "rows": 4, "row_length": 12, "parts": 1}
    assert found["difference"]["model.d_v"] == [None, 7]
    assert found["notes"] == []


def test_what_differs_without_effect_is_noted():
    values = to_dict(small()) | {"model": {"kind": "recurrent", "num_heads": 3, "d_model": 12, "cell": "gru"}}
    assert describe(from_dict(values))["notes"] == ["without effect here: model.num_heads"]
    values["model"] = {"cell": "gru", "d_model": 8, "equal_parameters": True}
    values["decode"] = {"sampling": True, "beam_size": 3, "length_penalty": 0.7}
    unread = "model.equal_parameters, model.cell, decode.beam_size"
    assert f"without effect here: {unread}" in describe(from_dict(values))["notes"]


def run(*arguments, status=0):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.describe", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"COLUMNS": "100"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def test_the_command_as_json():
    found = json.loads(run("--config=configs/table3.py:C-N2,number_words", "--json").stdout)
    assert found["parameters"] == sum(found["parameters_by_module"].values())
    assert found["difference"]["model.num_layers"] == [6, 1]
    assert found["resolved"]["model.d_k"] == 32
    assert any(line.startswith("model.num_layers is 1; the paper's: 6") for line in found["departures"])


def test_the_command_as_a_table():
    done = run("--config=configs/t2t.py", "--config.model.encoder_layers=12")
    assert "Declared departures" in done.stdout
    for words in (
        "layers_0 to layers_11, each",
        "model.norm_placement is 'pre'",
        "model.encoder_layers is 12",
    ):
        assert words in done.stdout
    assert max(map(len, done.stdout.split("\n"))) <= 100
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/base.py", "--config.model.positions=lerned"], "model.positions is 'lerned'; it must be one of: "),
        (["--config=configs/base.py", "--config.model.d_model=100"], "model.d_model is 100; it must be a multiple of"),
        (["--config=configs/table3.py:A-h1,C-N2"], "the config argument has A-h1 and C-N2; it may have one of them"),
        (["--config=configs/table3.py:C-N3"], "the config argument is 'C-N3'; it must be one of: "),
        ([], "--config is missing; see --help"),
    ],
    ids=lambda value: value[-1] if value and isinstance(value, list) else "",
)  # fmt: skip
def test_a_bad_value_is_one_line(arguments, message):
    done = run(*arguments, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
