"""Every config file, with every argument, is a valid config; base is the paper's, and frozen."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.launcher.sweep import expand, load_module, load_sweep
from transformer.config import ExperimentConfig, TransformerConfig, UserError, from_dict, to_dict
from transformer.model import build

ROOT = Path(__file__).parent.parent.parent
FILES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.name != "__init__.py"]
ARGUMENTS = {
    "number_words": ["en-de", "en-fr", "en-ko", "en-es", "en-tr"],
    "multi30k": ["cpu", "de-en", "raw"],
    "wmt14": ["big", "en-fr", "big,en-fr"],
}
CASES = [
    f"{path.name}:{argument}" for path in FILES for argument in ["", "smoke", *ARGUMENTS.get(path.stem, [])]
]


def config(case):
    name, _, argument = case.partition(":")
    return from_dict(load_module(str(ROOT / "configs" / name), "config").get_config(argument).to_dict())


@pytest.mark.parametrize("case", CASES)
def test_is_valid_and_builds(case):
    build(config(case).model, 100)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_begins_with_a_claim_and_its_command(path):
    text = load_module(str(path), "config").__doc__
    assert path.stem == "base" or f"--config=configs/{path.name}" in text


def test_base_is_frozen():
    assert config("base.py") == ExperimentConfig()


def test_arguments_come_in_any_order():
    assert config("multi30k.py:smoke,de-en,cpu") == config("multi30k.py:cpu,smoke,de-en")
    assert config("multi30k.py:cpu,smoke").train.steps == 20
    assert config("multi30k.py:de-en").data.source == "de"


def test_an_unknown_argument_is_refused():
    with pytest.raises(
        UserError, match="the config argument is 'gpu'; it must be one of: cpu, de-en, raw, smoke"
    ):
        config("multi30k.py:gpu")


def test_multi30k_is_the_published_recipe():
    """Transformer-Tiny of Wu et al. 2021."""
    tiny = config("multi30k.py")
    assert (tiny.model.num_layers, tiny.model.d_model, tiny.model.d_ff, tiny.model.num_heads) == (
        4,
        128,
        256,
        4,
    )
    assert (tiny.model.dropout_rate, tiny.train.label_smoothing, tiny.data.vocab_size) == (0.3, 0.1, 10_000)
    assert (tiny.optimizer.learning_rate, tiny.optimizer.warmup_steps) == (5e-3, 2_000)
    assert (tiny.train.batch_tokens, tiny.train.steps) == (8_192, 8_000)
    assert (tiny.decode.beam_size, tiny.decode.average_last) == (5, 10)


def test_wmt14_is_the_papers():
    """Sections 5 and 6; every other value is the dataclasses' own."""
    base, big, french = (config(f"wmt14.py:{argument}") for argument in ("", "big", "en-fr,big"))
    plain = ExperimentConfig()
    assert base == replace(plain, decode=replace(plain.decode, average_last=5))
    assert (base.train.steps, base.train.batch_tokens, base.data.vocab_size) == (100_000, 25_000, 37_000)
    assert (base.model.dropout_rate, base.decode.beam_size, base.decode.length_penalty) == (0.1, 4, 0.6)
    assert (base.data.name, base.data.source, base.data.target) == ("wmt14_translate/de-en", "en", "de")
    assert big == ExperimentConfig(
        model=TransformerConfig(d_model=1_024, d_ff=4_096, num_heads=16, dropout_rate=0.3),
        train=replace(plain.train, steps=300_000, keep_last=20),
        decode=replace(plain.decode, average_last=20),
    )
    assert french == replace(
        big,
        model=replace(big.model, dropout_rate=0.1),
        data=replace(big.data, name="wmt14_translate/fr-en", target="fr", vocab_size=32_000),
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "sweeps").glob("[!_]*.py")), ids=lambda path: path.stem
)
def test_every_sweep_expands(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load_sweep(f"{path.relative_to(ROOT)}:smoke")
    runs = expand(sweep, {}, seeds=2)
    assert len(runs) == 2 * len(sweep.variants)
    assert len({run.id for run in runs}) == len(runs)
    for run in runs:
        differing = {
            f"{section}.{key}"
            for section, values in to_dict(run.config).items()
            for key, value in values.items()
            if value != to_dict(runs[0].config)[section][key]
        }
        assert differing <= set(sweep.variants[run.variant]) | {"train.seed"}
