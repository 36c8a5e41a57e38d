"""Every config file, with every argument, is a valid config; the presets are frozen."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.launcher.sweep import expand, load_module, load_sweep
from transformer.config import (
    ExperimentConfig,
    TransformerConfig,
    UserError,
    flatten,
    from_dict,
    from_stored,
    to_dict,
)
from transformer.model import build
from transformer.training.optimizer import learning_rate

ROOT = Path(__file__).parent.parent.parent
FILES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.name != "__init__.py"]
ROWS = load_module(str(ROOT / "configs/table3.py"), "config").ROWS
SCALES = ["multi30k", "number_words"]
ARGUMENTS = {
    "table3": [*SCALES, *ROWS, *(f"{row},{scale}" for row in ROWS for scale in [*SCALES, "smoke"])],
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


@pytest.mark.parametrize("name", ["base.py", "big.py", "t2t.py"])
def test_a_preset_is_frozen(name):
    """A field that is added needs no entry in frozen.json, if it is in ADDED."""
    frozen = json.loads((Path(__file__).parent / "frozen.json").read_text())
    assert config(name) == from_stored(frozen[name])
    assert config("base.py") == ExperimentConfig()


def test_t2t_is_transformer_base_v3():
    """tensor2tensor/models/transformer.py; its rate at step n, with linear warm-up and rsqrt_decay."""
    t2t = config("t2t.py")
    assert (t2t.model.norm_placement, t2t.model.dropout_sites) == ("pre", "all")
    assert (t2t.model.positions, t2t.model.dropout_rate) == ("sinusoidal_concat", 0.1)
    assert (t2t.optimizer.beta1, t2t.optimizer.beta2, t2t.optimizer.epsilon) == (0.9, 0.997, 1e-9)
    for step in (1, 4_000, 8_000, 100_000):
        theirs = 2.0 * min(1, step / 8_000) * max(step, 8_000) ** -0.5 * 512**-0.5
        rate = learning_rate(step, t2t.optimizer.learning_rate, t2t.optimizer.warmup_steps)
        assert rate == pytest.approx(theirs, rel=1e-6)


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
    assert base == replace(
        plain,
        train=replace(plain.train, validate_every=1_500),
        decode=replace(plain.decode, average_last=5),
    )
    assert (base.train.steps, base.train.batch_tokens, base.data.vocab_size) == (100_000, 25_000, 37_000)
    assert (base.model.dropout_rate, base.decode.beam_size, base.decode.length_penalty) == (0.1, 4, 0.6)
    assert (base.data.name, base.data.source, base.data.target) == ("wmt14_translate/de-en", "en", "de")
    assert big == ExperimentConfig(
        model=TransformerConfig(d_model=1_024, d_ff=4_096, num_heads=16, dropout_rate=0.3),
        train=replace(plain.train, steps=300_000, validate_every=600, keep_last=20),
        decode=replace(plain.decode, average_last=20),
    )
    assert french == replace(
        big,
        model=replace(big.model, dropout_rate=0.1),
        data=replace(big.data, name="wmt14_translate/fr-en", target="fr", vocab_size=32_000),
    )


def differing(one, other):
    """The keys in which two configs differ."""
    one, other = flatten(to_dict(one)), flatten(to_dict(other))
    return {key for key in one if one[key] != other[key]}


# Table 3 as PAPER has it: N, d_model, d_ff, h, d_k, d_v, P_drop, eps_ls, steps; None: as base.
PAPER = {
    "base": (6, 512, 2_048, 8, 64, 64, 0.1, 0.1, 100_000),
    "A-h1": (None, None, None, 1, 512, 512, None, None, None),
    "A-h4": (None, None, None, 4, 128, 128, None, None, None),
    "A-h16": (None, None, None, 16, 32, 32, None, None, None),
    "A-h32": (None, None, None, 32, 16, 16, None, None, None),
    "B-dk16": (None, None, None, None, 16, None, None, None, None),
    "B-dk32": (None, None, None, None, 32, None, None, None, None),
    "C-N2": (2, None, None, None, None, None, None, None, None),
    "C-N4": (4, None, None, None, None, None, None, None, None),
    "C-N8": (8, None, None, None, None, None, None, None, None),
    "C-d256": (None, 256, None, None, 32, 32, None, None, None),
    "C-d1024": (None, 1_024, None, None, 128, 128, None, None, None),
    "C-ff1024": (None, None, 1_024, None, None, None, None, None, None),
    "C-ff4096": (None, None, 4_096, None, None, None, None, None, None),
    "D-drop0": (None, None, None, None, None, None, 0.0, None, None),
    "D-drop2": (None, None, None, None, None, None, 0.2, None, None),
    "D-ls0": (None, None, None, None, None, None, None, 0.0, None),
    "D-ls2": (None, None, None, None, None, None, None, 0.2, None),
    "E-learned": (None, None, None, None, None, None, None, None, None),
    "big": (6, 1_024, 4_096, 16, None, None, 0.3, None, 300_000),
}


@pytest.mark.parametrize("row", PAPER)
def test_a_row_of_table_3_is_the_papers(row):
    one = config(f"table3.py:{row}")
    model, train = one.model, one.train
    sizes = (model.encoder_depth, model.d_model, model.d_ff, model.num_heads, model.key_width)
    rates = (model.value_width, model.dropout_rate, train.label_smoothing, train.steps)
    expected = [base if own is None else own for own, base in zip(PAPER[row], PAPER["base"], strict=True)]
    assert list(sizes + rates) == expected
    assert model.positions == ("learned" if row == "E-learned" else "sinusoidal")
    assert one.decode.average_last == 1


def test_table_3_has_the_papers_rows():
    assert list(ROWS) == list(PAPER)
    assert config("table3.py:base") == config("table3.py") == config("base.py")
    assert config("table3.py:big") == config("big.py")


@pytest.mark.parametrize("scale", ["", *SCALES])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_differs_from_base_in_its_own_keys(row, scale):
    keys = ROWS[row].small if scale else ROWS[row].paper
    assert differing(config(f"table3.py:{row},{scale}"), config(f"table3.py:{scale}")) == set(keys)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_at_a_small_scale_what_it_changes_in_the_paper(row):
    paper, small = (set(changes) for changes in ROWS[row])
    assert paper - small == ({"model.dropout_rate", "train.steps"} if row == "big" else set())
    assert small <= paper


def test_small_scales_of_table_3():
    tiny, words = config("table3.py:multi30k"), config("table3.py:number_words")
    assert differing(tiny, config("multi30k.py")) == {"decode.average_last"}
    assert differing(words, config("number_words.py")) == {"model.d_ff", "model.dropout_rate"}
    assert (tiny.decode.average_last, words.model.d_ff, words.model.dropout_rate) == (1, 256, 0.1)
    shapes = {key for key in differing(tiny, words) if key.startswith("model.")}
    assert shapes == {"model.num_layers", "model.dropout_rate"}
    assert [config(f"table3.py:{row},multi30k").model.num_heads for row in ROWS if row[0] == "A"] == [
        1,
        2,
        8,
        16,
    ]


@pytest.mark.parametrize("scale", ["", *SCALES])
@pytest.mark.parametrize("row", ROWS)
def test_smoke_leaves_a_row_its_own_small_values(row, scale):
    """And shrinks all that is not the row's."""
    small, smoke = config(f"table3.py:{row},smoke,{scale}"), config(f"table3.py:smoke,{scale}")
    has_them_already = {"base", "A-h4", "C-N2"}
    assert differing(small, smoke) == (set() if row in has_them_already else set(ROWS[row].small))
    assert small.train.steps == 20


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("A-h1,C-N2", "the config argument has A-h1 and C-N2; it may have one of them"),
        ("C-N2,big,A-h1", "the config argument has A-h1 and C-N2 and big; it may have one of them"),
        (
            "number_words,C-N2,multi30k",
            "the config argument has multi30k and number_words; it may have one of them",
        ),
    ],
)
def test_one_row_and_one_scale(argument, message):
    with pytest.raises(UserError) as error:
        config(f"table3.py:{argument}")
    assert str(error.value) == message


def test_words_of_table_3_come_in_any_order():
    words = ("C-N2", "multi30k", "smoke")
    first, *others = (config(f"table3.py:{','.join(order)}") for order in itertools.permutations(words))
    assert all(other == first for other in others)
    assert (first.model.num_layers, first.model.d_model, first.data.name) == (1, 32, "multi30k")


def test_the_study_of_table_3_has_every_row():
    sweep = load_module(str(ROOT / "configs/sweeps/table3.py"), "sweep")
    assert sweep.CONFIG == "configs/table3.py:number_words"
    overflow = sweep.VARIANTS["E-learned"].pop(
        "model.overflow"
    )  # test_long is longer than what is trained on
    assert overflow == "clamp"
    for row, changes in sweep.VARIANTS.items():
        assert from_dict(config_with(config("table3.py:number_words"), changes)) == config(
            f"table3.py:number_words,{row}"
        )
    assert list(sweep.VARIANTS) == list(ROWS)


def config_with(config, changes):
    values = to_dict(config)
    for key, value in changes.items():
        section, field = key.split(".")
        values[section][field] = value
    return values


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
        varied = set(sweep.variants[run.variant]) | {"train.seed"}
        assert differing(run.config, runs[0].config) <= varied
