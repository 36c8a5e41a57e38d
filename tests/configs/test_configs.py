"""Config files: every argument gives a valid config, presets do not change, and sweeps can be expanded."""

import functools
import itertools
import json
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.config_files import load_config, load_module
from experiments.study.equal import ADJUSTED_FIELD
from experiments.study.sweep import expand
from experiments.study.sweep_file import load_sweeps
from experiments.study.tasks import applicable
from tests.support.commands import ROOT
from transformer.config import ExperimentConfig, ModelConfig, UserError, flatten, from_dict, to_dict
from transformer.data.python_stdlib import is_kept
from transformer.tasks import resolve
from transformer.training.optimizers import make_schedule

FILES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.name != "__init__.py"]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("[!_]*.py"))
EXPECTED_REFUSALS = {
    "everywhere": {
        "translation": {},
        "language": {"deep_encoder": "model.encoder_layers has no effect"},
        "images": {"deep_encoder": "model.decoder_layers has no effect"},
    }
}
ROWS = load_module(str(ROOT / "configs/table3.py"), "config").ROWS
SCALES = ["multi30k", "number_words"]
ARGUMENTS = {
    "table3": [*SCALES, *ROWS, *(f"{row},{scale}" for row in ROWS for scale in [*SCALES, "smoke"])],
    "number_words": ["en-de", "en-fr", "en-ko", "en-es", "en-tr"],
    "multi30k": ["cpu", "de-en", "raw"],
    "gpt": ["shakespeare", "char", "gpu", "char,smoke", "shakespeare,char,cpu"],
    "digits": ["fine"],
    "images": ["mnist", "cifar10"],
    "wmt14": ["big", "en-fr", "big,en-fr"],
}


@functools.cache
def load(case) -> ExperimentConfig:
    """The config of a file with an argument, such as `multi30k.py:cpu`."""
    return load_config(str(ROOT / "configs" / case), {})


def differing(first, second) -> set[str]:
    """The keys in which two configs differ."""
    first, second = flatten(to_dict(first)), flatten(to_dict(second))
    return {key for key in {**first, **second} if first.get(key) != second.get(key)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_argument_makes_a_valid_config(path):
    for argument in ["", "smoke", *ARGUMENTS.get(path.stem, [])]:
        resolve(load(f"{path.name}:{argument}"))


@pytest.mark.parametrize("argument", ["python_stdlib", "bpe", "cpu"])
def test_the_default_arguments_of_gpt_change_nothing(argument):
    assert load(f"gpt.py:{argument}") == load("gpt.py:")
    assert load(f"gpt.py:{argument},smoke") == load("gpt.py:smoke")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_docstring_of_a_config_file_has_its_command(path):
    text = load_module(str(path), "config").__doc__
    assert path.stem == "base" or f"--config=configs/{path.name}" in text


@pytest.mark.parametrize("name", ["base.py", "big.py", "t2t.py"])
def test_a_preset_does_not_change(name):
    frozen = json.loads((Path(__file__).parent / "frozen.json").read_text())
    assert resolve(load(name)) == from_dict(frozen[name])  # a field that frozen.json lacks has its default
    assert load("base.py") == ExperimentConfig()


def test_t2t_is_transformer_base_v3():
    """The source is tensor2tensor/models/transformer.py. The rate has a linear warm-up, then rsqrt_decay."""
    t2t = load("t2t.py")
    assert (t2t.model.residual, t2t.model.dropout_sites) == ("pre_norm", "all")
    assert (t2t.model.positions, t2t.model.dropout_rate) == ("sinusoidal_concat", 0.1)
    assert (t2t.optimizer.beta1, t2t.optimizer.beta2, t2t.optimizer.epsilon) == (0.9, 0.997, 1e-9)
    schedule = make_schedule(t2t.optimizer, t2t.optimizer.learning_rate, t2t.train.steps)
    for step in (1, 4_000, 8_000, 100_000):
        expected = 2.0 * min(1, step / 8_000) * max(step, 8_000) ** -0.5 * 512**-0.5
        assert schedule(step - 1) == pytest.approx(expected, rel=1e-6)  # the schedule counts finished updates


def test_arguments_may_come_in_any_order():
    assert load("multi30k.py:smoke,de-en,cpu") == load("multi30k.py:cpu,smoke,de-en")
    assert load("multi30k.py:cpu,smoke").train.steps == 20
    assert load("multi30k.py:de-en").data.source == "de"


def test_an_unknown_argument_is_refused():
    with pytest.raises(
        UserError, match="the config argument is 'gpu'; it must be one of: cpu, de-en, raw, smoke"
    ):
        load("multi30k.py:gpu")


def test_number_words_has_the_values_of_the_demo():
    """A run with these values scored 98.0 % exact match."""
    demo = resolve(load("number_words.py"))
    assert differing(demo, resolve(ExperimentConfig(data=replace(ExperimentConfig().data, name="number_words")))) == {
        "model.num_layers", "model.d_model", "model.d_ff", "model.num_heads", "model.dropout_rate",
        "data.vocab_size", "data.row_length", "optimizer.warmup_steps", "optimizer.learning_rate",
        "train.steps", "train.batch_tokens", "train.log_every", "train.validate_every",
    }  # fmt: skip
    model, train = demo.model, demo.train
    assert (model.num_layers, model.d_model, model.d_ff, model.num_heads, model.dropout_rate) == (
        2,
        128,
        512,
        4,
        0,
    )
    assert (demo.data.vocab_size, demo.data.row_length, demo.data.options["lists"]) == (512, 64, 50_000)
    assert (demo.optimizer.warmup_steps, demo.optimizer.learning_rate) == (300, 2e-3)
    assert (train.steps, train.batch_tokens, train.validate_every) == (1_200, 1_024, 300)


def test_multi30k_is_the_published_recipe():
    """The recipe is Transformer-Tiny of Wu et al. (2021)."""
    tiny = load("multi30k.py")
    model = tiny.model
    assert (model.num_layers, model.d_model, model.d_ff, model.num_heads) == (4, 128, 256, 4)
    assert (model.dropout_rate, tiny.train.label_smoothing, tiny.data.vocab_size) == (0.3, 0.1, 10_000)
    assert (tiny.optimizer.learning_rate, tiny.optimizer.warmup_steps) == (5e-3, 2_000)
    assert (tiny.train.batch_tokens, tiny.train.steps) == (8_192, 8_000)
    assert (tiny.decode.beam_size, tiny.decode.average_last) == (5, 10)
    assert tiny.data.options == {"text": "lc.norm.tok"}
    assert load("multi30k.py:raw").data.options == {"text": "raw"}


def test_wmt14_is_the_setup_of_the_paper():
    """Values are from sections 5 and 6 of the paper. Every other field has its default."""
    base, big, french = (load(f"wmt14.py:{argument}") for argument in ("", "big", "en-fr,big"))
    default = ExperimentConfig()
    assert base == replace(
        default,
        train=replace(default.train, validate_every=1_500),
        decode=replace(default.decode, average_last=5),
    )
    assert (base.train.steps, base.train.batch_tokens, base.data.vocab_size) == (100_000, 25_000, 37_000)
    assert (base.model.dropout_rate, base.decode.beam_size, base.decode.length_penalty) == (0.1, 4, 0.6)
    assert (base.data.name, base.data.source, base.data.target) == ("wmt14_translate/de-en", "en", "de")
    assert big == ExperimentConfig(
        model=ModelConfig(d_model=1_024, d_ff=4_096, num_heads=16, dropout_rate=0.3),
        train=replace(default.train, steps=300_000, validate_every=600, keep_last=20),
        decode=replace(default.decode, average_last=20),
    )
    assert french == replace(
        big,
        model=replace(big.model, dropout_rate=0.1),
        data=replace(big.data, name="wmt14_translate/fr-en", target="fr", vocab_size=32_000),
    )


# Table 3 of the paper: N, d_model, d_ff, h, d_k, d_v, P_drop, eps_ls, steps. None means the value of base.
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
def test_a_row_of_table_3_has_the_values_of_the_paper(row):
    config = load(f"table3.py:{row}")
    model, train = config.model, config.train
    sizes = (model.encoder_depth, model.d_model, model.d_ff, model.num_heads, model.key_width)
    rates = (model.value_width, model.dropout_rate, train.label_smoothing, train.steps)
    pairs = zip(PAPER[row], PAPER["base"], strict=True)
    assert list(sizes + rates) == [base if value is None else value for value, base in pairs]
    assert model.positions == ("learned" if row == "E-learned" else "sinusoidal")
    assert config.decode.average_last == 1


def test_table_3_has_the_rows_of_the_paper():
    assert list(ROWS) == list(PAPER)
    assert load("table3.py:base") == load("table3.py") == load("base.py")
    assert load("table3.py:big") == load("big.py")


@pytest.mark.parametrize("scale", ["", *SCALES])
def test_a_row_differs_from_base_only_in_the_keys_that_it_sets(scale):
    base = load(f"table3.py:{scale}")
    for row, changes in ROWS.items():
        keys = changes.small if scale else changes.paper
        assert differing(load(f"table3.py:{row},{scale}"), base) == set(keys), row


@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_the_same_keys_at_both_scales(row):
    paper, small = set(ROWS[row].paper), set(ROWS[row].small)
    assert paper - small == ({"model.dropout_rate", "train.steps"} if row == "big" else set())
    assert small <= paper


def test_small_scales_of_table_3_start_from_the_config_of_their_data_set():
    tiny, words = load("table3.py:multi30k"), load("table3.py:number_words")
    assert differing(tiny, load("multi30k.py")) == {"decode.average_last"}
    assert differing(words, load("number_words.py")) == {"model.d_ff", "model.dropout_rate"}
    assert (tiny.decode.average_last, words.model.d_ff, words.model.dropout_rate) == (1, 256, 0.1)
    shapes = {key for key in differing(tiny, words) if key.startswith("model.")}
    assert shapes == {"model.num_layers", "model.dropout_rate"}
    heads = [load(f"table3.py:{row},multi30k").model.num_heads for row in ROWS if row[0] == "A"]
    assert heads == [1, 2, 8, 16]


@pytest.mark.parametrize("scale", ["", *SCALES])
def test_smoke_shrinks_the_base_model_but_not_the_small_values_of_a_row(scale):
    smoke = load(f"table3.py:smoke,{scale}")
    assert smoke.train.steps == 20
    for row, changes in ROWS.items():
        small = load(f"table3.py:{row},smoke,{scale}")
        equals_smoke = row in ("base", "A-h4", "C-N2")
        assert differing(small, smoke) == (set() if equals_smoke else set(changes.small)), row


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("A-h1,C-N2", "the config argument has A-h1 and C-N2; give only one of them"),
        ("C-N2,big,A-h1", "the config argument has A-h1 and C-N2 and big; give only one of them"),
        ("number_words,C-N2,multi30k", "the config argument has multi30k and number_words; give only one of them"),
    ],
)  # fmt: skip
def test_two_alternatives_in_one_argument_are_refused(argument, message):
    with pytest.raises(UserError) as error:
        load(f"table3.py:{argument}")
    assert str(error.value) == message


def test_arguments_of_table_3_may_come_in_any_order():
    words = ("C-N2", "multi30k", "smoke")
    first, *others = (load(f"table3.py:{','.join(order)}") for order in itertools.permutations(words))
    assert all(config == first for config in others)
    assert (first.model.num_layers, first.model.d_model, first.data.name) == (1, 32, "multi30k")


def test_the_study_of_table_3_has_every_row():
    sweep = load_module(str(ROOT / "configs/sweeps/table3.py"), "sweep")
    assert sweep.CONFIG == "configs/table3.py:number_words"
    variants = {name: dict(changes) for name, changes in sweep.VARIANTS.items()}
    assert list(variants) == list(ROWS)
    assert variants["E-learned"].pop("model.overflow") == "clamp"  # test_long has longer sentences than train
    for row, changes in variants.items():
        expected = load(f"table3.py:number_words,{row}")
        assert load_config(str(ROOT / "configs/table3.py:number_words"), changes) == expected


@pytest.mark.parametrize(
    "path",
    [
        # Equal parameters or FLOPs are computed from traced programs.
        pytest.param(path, marks=pytest.mark.slow if "decoder_only" in path.stem else ())
        for path in SWEEPS
    ],
    ids=lambda path: path.stem,
)
def test_every_sweep_can_be_expanded_into_runs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # With smoke, some rows of Table 3 have the same config, and eight layers are larger than the baseline.
    argument = "" if path.stem in ("table3", "decoder_only_multi30k") else ":smoke"
    sweeps = load_sweeps(f"{path.relative_to(ROOT)}{argument}")
    sweeps, refused = applicable(sweeps, {task: {} for task in sweeps})
    assert refused == EXPECTED_REFUSALS.get(path.stem, {})
    for sweep in sweeps.values():
        runs = expand(sweep, {}, seeds=2)
        assert len(runs) == 2 * len(sweep.variants)
        assert len({run.id for run in runs}) == len(runs)
        for run in runs:
            varied = {*sweep.variants[run.variant], "train.seed", ADJUSTED_FIELD.get(sweep.equal)}
            assert differing(run.config, runs[0].config) <= varied


def test_a_flag_may_add_a_data_option_that_the_config_file_does_not_set():
    config = load_config(str(ROOT / "configs/text.py"), {"data.options.train": "a.tsv"})
    assert config.data.options["train"] == "a.tsv"
    assert from_dict(to_dict(config)) == config


def test_the_small_vocabulary_of_a_language_model_fits_the_standard_library():
    """Byte fallback takes 256 tokens, the special tokens 4, and each character of the library another one."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in folder.rglob("*.py") if is_kept(str(path.relative_to(folder)))]
    characters = set("".join(path.read_text(errors="ignore") for path in paths))
    assert load("gpt.py:smoke").data.vocab_size >= 256 + 4 + len(characters)
