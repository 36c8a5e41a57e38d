"""Exchanges between chips and memory of a training step that the TPU compiler compiled.

The tests with the marker `tpu` need libtpu: `make test-tpu` installs it. No test needs a TPU.
"""

import dataclasses
import importlib.util
import json

import jax
import pytest

from experiments.topology import compile_for, largest_batch, open_topology
from tests.support.commands import call, refuse
from transformer.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from transformer.model import build_model, parameter_shapes
from transformer.tasks import resolve

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu: make test-tpu")
V5E = "v5e:2x4"
# 64 rows of 64 tokens: no array of an exchange may have a row per token and a column per class.
SMALL = ExperimentConfig(
    model=ModelConfig(num_layers=1, d_model=256, d_ff=512, num_heads=4, dtype="bfloat16"),
    data=DataConfig(name="number_words", vocab_size=4_096, row_length=64),
    train=TrainConfig(batch_tokens=4_096),
)


def config(**train):
    return resolve(dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, **train)))


def compiled(**train):
    return compile_for(config(**train), V5E, largest=False, progress=lambda line: None)


def num_parameters():
    shapes = parameter_shapes(build_model(SMALL.model, SMALL.data.vocab_size))
    return sum(shape.size for shape in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("rows", "unit", "expected"),
    [
        (64, 8, 960),
        (8, 8, 960),
        (8_000, 8, 960),
        (1_024, 1_024, None),
        (1, 1, 960),
        (2, 2, 960),
        (961, 31, 930),
    ],
)
def test_the_largest_batch_is_extrapolated(rows, unit, expected):
    """A batch needs 40 bytes, and 1 byte per row; 1,000 bytes are available."""
    compiled = []

    def figures_of(rows):
        compiled.append(rows)
        assert rows % unit == 0
        assert rows > 0
        return {"fits": 40 + rows <= 1_000, "needed_bytes": 40 + rows}

    assert largest_batch(figures_of, rows, unit, available=1_000) == expected
    assert len(set(compiled)) <= 7  # halved until it fits, a second batch, and the largest


def test_the_largest_batch_is_made_smaller_until_it_fits():
    def figures_of(rows):
        return {"fits": rows <= 500, "needed_bytes": 40 + rows}

    assert 400 < largest_batch(figures_of, 64, 8, available=1_000) <= 500


def test_wrong_flags_give_a_one_line_error(monkeypatch):
    flags = ("describe", "--config=configs/number_words.py")
    assert (
        refuse(*flags, "--largest_batch")
        == "--largest_batch needs --topology; add --topology=SLICE or remove --largest_batch"
    )
    line = refuse(*flags, "--topology=v5e:2x2", "--config.train.parallelism=pmap")
    assert line == "--topology compiles for a mesh, but train.parallelism is 'pmap'; set it to mesh"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = refuse(*flags, "--topology=v5e:2x2")
    assert (
        line
        == "--topology needs the TPU compiler, which is not installed; run pip install -c constraints.txt -e '.[tpu]'"
    )


@pytest.mark.tpu
@needs_libtpu
def test_data_parallelism_sums_all_gradients_at_once_in_float32():
    whole = compiled()
    size = num_parameters()
    assert whole["chips"] == 8
    assert whole["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    (kind,) = whole["training"]["collectives"]
    entry = whole["training"]["collectives"][kind]
    assert (kind, entry["count"], entry["dtypes"]) == ("all-reduce", 1, ["f32"])
    assert entry["bytes"] == pytest.approx(4 * size, rel=1e-3)  # and a few totals
    assert whole["training"]["parameter_bytes"] == 4 * size


@pytest.mark.tpu
@needs_libtpu
@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (2, 2)])
def test_fsdp_splits_the_state_and_exchanges_only_weights_and_gradients(fsdp, tensor):
    size = num_parameters()
    split = compiled(fsdp=fsdp, tensor=tensor)["training"]
    assert split["parameter_bytes"] == pytest.approx(4 * size / (fsdp * tensor), rel=0.02)
    assert split["optimizer_bytes"] == pytest.approx(8 * size / (fsdp * tensor), rel=0.02)
    assert split["collectives"]["reduce-scatter"]["dtypes"] == ["f32"]
    tokens_on_a_chip = split["rows"] * split["row_length"] / (8 / tensor)
    largest = max(entry["largest_bytes"] for entry in split["collectives"].values())
    assert largest < 2 * tokens_on_a_chip * SMALL.data.vocab_size / tensor
    if tensor == 1:
        # All-reduces are left for weights that are not split, such as norms, and for totals.
        assert split["collectives"]["all-reduce"]["bytes"] < 0.01 * 4 * size
        assert split["collectives"]["all-gather"]["dtypes"] == ["bf16"]


@pytest.mark.tpu
@needs_libtpu
def test_base_fits_four_chips():
    flags = ("describe", "--json", "--topology=v5e:2x2", "--config.model.dtype=bfloat16")
    base = json.loads(call(*flags, "--config=configs/base.py").stdout)["topology"]
    assert base["training"]["fits"]
    assert base["search"]["fits"]
    assert {entry["name"] for entry in base["padding"]} == {"data.vocab_size", "model.d_k", "model.d_v"}


@pytest.mark.tpu
@needs_libtpu
def test_the_largest_batch_fills_the_memory():
    long_rows = dataclasses.replace(SMALL, data=dataclasses.replace(SMALL.data, row_length=1_024))
    result = compile_for(resolve(long_rows), "v5e:1x1", largest=True, progress=lambda line: None)
    needed = result["largest_batch"]["needed_bytes"]
    assert 0.85 * result["available_bytes"] < needed <= result["available_bytes"]


@pytest.mark.tpu
@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "x", "v5e:", ""])
def test_an_unknown_slice_is_refused(name):
    line = refuse("describe", "--config=configs/number_words.py", f"--topology={name}")
    assert line.startswith(f"--topology is {name!r}")
    assert line.endswith("; try v5e:1x1, v5e:2x4, v5p:2x2x1 or v6e:4x4")


@pytest.mark.tpu
@needs_libtpu
def test_a_slice_has_the_chips_of_its_name():
    assert [len(open_topology(name)) for name in ("v5e:1x1", "v5e:2x2", "v5e:4x4")] == [1, 4, 16]
