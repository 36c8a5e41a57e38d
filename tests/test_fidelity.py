"""Departures of a config from the paper: the list is complete and has nothing else."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import table3
from transformer.batch import TokenBatch
from transformer.config import ExperimentConfig, ModelConfig, declarations, flatten, from_dict, to_dict
from transformer.data.builders import options_type
from transformer.fidelity import departures, is_read
from transformer.model import build_model
from transformer.tasks import resolve

ROOT = Path(__file__).parent.parent


def config(case, changes=None):
    """The resolved config of a file such as "wmt14.py:big", with `changes` from dotted keys to values."""
    name, _, argument = case.partition(":")
    module = importlib.import_module(f"configs.{name.removesuffix('.py')}")
    values = to_dict(resolve(from_dict(module.get_config(argument).to_dict())))
    for key, value in (changes or {}).items():
        *sections, field = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[field] = value
    return from_dict(values)


def lines(config):
    return departures(config, options_type(config.data.name))


def fields(config):
    """The field of each departure, which is the first word of the departure's line."""
    return [line.split()[0] for line in lines(config)]


@pytest.mark.parametrize(
    "case", ["base.py", "big.py", "wmt14.py", "wmt14.py:big", *(f"table3.py:{row}" for row in table3.ROWS)]
)
def test_the_configs_of_the_paper_have_no_departure(case):
    assert lines(config(case)) == []


@pytest.mark.parametrize("case", ["wmt14.py:en-fr", "wmt14.py:en-fr,big"])
def test_the_english_french_config_departs_only_in_its_tokenizer(case):
    assert lines(config(case)) == [
        "data.tokenizer is 'bpe'; the paper's with wmt14_translate/fr-en: 'word pieces' (section 5.1)"
    ]


def test_t2t_departs_in_exactly_the_fields_that_it_changes():
    t2t, base = (flatten(to_dict(config(case))) for case in ("t2t.py", "base.py"))
    assert sorted(fields(config("t2t.py"))) == sorted(key for key in t2t if t2t[key] != base[key])
    assert sorted(lines(config("t2t.py"))) == sorted(
        [
            "model.dropout_sites is 'all'; the paper's: 'paper' (section 5.4)",
            "model.positions is 'sinusoidal_concat'; the paper's: 'sinusoidal' (section 3.5), "
            "'learned' (Table 3, row E)",
            "model.residual is 'pre_norm'; the paper's: 'post_norm' (section 3.1)",
            "optimizer.beta2 is 0.997; the paper's: 0.98 (section 5.3)",
            "optimizer.warmup_steps is 8000; the paper's: 4000 (section 5.3)",
            f"optimizer.learning_rate is {2 * (512 * 8_000) ** -0.5!r}; the paper's: "
            "(d_model * warmup_steps)^-0.5 (equation 3)",
        ]
    )


@pytest.mark.parametrize(
    "case",
    ["base.py:smoke", "big.py:smoke", "multi30k.py", "number_words.py", "text.py", "table3.py:multi30k"],
)
def test_other_configs_have_departures(case):
    name, _, argument = case.partition(":")
    module = importlib.import_module(f"configs.{name.removesuffix('.py')}")
    assert departures(from_dict(module.get_config(argument).to_dict()))


# For each field with a value in the paper, a value that is not in the paper.
OTHER_VALUES = {
    "task": "x", "model.kind": "recurrent", "model.num_layers": 3, "model.encoder_layers": 3,
    "model.decoder_layers": 3, "model.d_model": 768, "model.d_ff": 512, "model.num_heads": 2, "model.d_k": 65,
    "model.d_v": 32, "model.num_kv_heads": 2, "model.qk_norm": True, "model.logit_cap": 50.0,
    "model.attention_window": 3, "model.attention_gate": True, "model.dropout_rate": 0.4, "model.dropout_sites": "all", "model.positions": "rope",
    "model.overflow": "clamp", "model.norm": "rms_norm", "model.residual": "pre_norm",
    "model.feed_forward": "swiglu", "model.embeddings": "untied", "model.dtype": "bfloat16",
    "data.name": "wmt16_translate/de-en", "data.source": "fr", "data.target": "fr", "data.tokenizer": "unigram", "data.byte_fallback": True,
    "data.vocab_size": 40_500, "optimizer.name": "adamw", "optimizer.schedule": "cosine",
    "optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 8_000, "optimizer.beta1": 0.5,
    "optimizer.beta2": 0.5, "optimizer.epsilon": 1e-8, "optimizer.clip_norm": 1.0, "train.steps": 7,
    "train.batch_tokens": 4_096, "train.label_smoothing": 0.3, "train.z_loss": 1e-4, "train.validate_every": 1_000,
    "train.patience": 10, "decode.beam_size": 5, "decode.penalty": "length", "decode.length_penalty": 0.7,
    "decode.max_extra_length": 100, "decode.max_output_length": 100, "decode.min_output_length": 2,
    "decode.sampling": True, "decode.average_last": 10,
    "data.options.train": "train[:99%]", "data.options.validation": "train[99%:]", "data.options.test": "x",
}  # fmt: skip


def test_other_values_cover_every_field_that_the_paper_reports():
    declared = declarations(ExperimentConfig) | declarations(
        options_type("wmt14_translate/de-en"), "data.options."
    )
    reported = {field for field, declaration in declared.items() if declaration.paper}
    assert {*OTHER_VALUES} == reported - {"optimizer.weight_decay"}  # needs a different optimizer


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_value_that_is_not_in_the_paper_is_the_only_departure(field):
    """Changes wmt14.py, in which every field has an effect because it averages checkpoints."""
    changed = config("wmt14.py", {field: OTHER_VALUES[field]})
    unbalanced = {"model.encoder_layers", "model.decoder_layers"} & {field}
    assert fields(changed) == [field, *(["model.encoder_layers"] if unbalanced else [])]
    if field != "data.target":  # the paper has the value fr, but for the other language pair
        assert lines(changed)[0].startswith(f"{field} is {OTHER_VALUES[field]!r}; the paper's: ")


def test_weight_decay_is_a_departure():
    changed = config("base.py", {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1})
    assert fields(changed) == ["optimizer.name", "optimizer.weight_decay"]


def test_values_of_the_other_language_pair_are_departures():
    assert lines(config("base.py", {"data.target": "fr", "data.vocab_size": 32_000})) == [
        "data.target is 'fr'; the paper's with wmt14_translate/de-en: 'de' (section 5.1)",
        "data.vocab_size is 32000; the paper's with wmt14_translate/de-en: 37000 (section 5.1)",
    ]
    reverse = config("base.py", {"data.source": "de", "data.target": "en"})
    assert fields(reverse) == ["data.source", "data.target"]


def test_unequal_depths_are_a_departure():
    assert lines(config("base.py", {"model.encoder_layers": 8, "model.decoder_layers": 4})) == [
        "model.encoder_layers is 8 and model.decoder_layers 4; the paper's: equal numbers (section 3.1)"
    ]
    assert lines(config("base.py", {"model.decoder_layers": 2})) == [
        "model.encoder_layers is 6 and model.decoder_layers 2; the paper's: equal numbers (section 3.1)"
    ]
    # A second departure is that no model of the paper has 12 layers.
    assert len(lines(config("base.py", {"model.encoder_layers": 12, "model.decoder_layers": 2}))) == 2


def test_values_from_different_models_of_the_paper_are_departures():
    assert lines(config("base.py", {"model.num_layers": 2, "model.num_heads": 16})) == [
        "model.num_layers is 2, model.num_heads is 16; no single model of the paper has these values (Table 3)"
    ]
    assert lines(config("base.py", {"model.dropout_rate": 0.3})) == [
        "model.dropout_rate is 0.3; the paper has this value with big only (Table 3)"
    ]
    assert fields(config("base.py", {"train.steps": 300_000})) == ["train.steps"]
    assert fields(config("big.py", {"model.dropout_rate": 0.1})) == ["model.d_model"]
    assert fields(config("big.py", {"model.d_k": 64, "model.d_v": 64})) == []


def test_a_version_in_the_name_of_the_data_set_is_no_departure():
    name = {"data.name": "wmt14_translate/de-en:1.0.0"}
    assert lines(config("base.py", name)) == []
    assert fields(config("base.py", {**name, "data.target": "fr"})) == ["data.target"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model.d_k": 64, "model.d_v": 64},  # the values that None stands for
        {"model.encoder_layers": 6},
        {"model.encoder_layers": 4, "model.decoder_layers": 4, "model.num_layers": 17},
        {"model.num_kv_heads": 8},  # the value that None stands for
        {"model.rope_base": 100.0, "model.rope_fraction": 0.5},
        {"model.cell": "gru"},
        {"model.equal_parameters": True},
        {"model.dropout_rate": 0.0, "model.dropout_sites": "all"},
        {"model.overflow": "extrapolate"},
        {"model.overflow": "error"},  # an error changes no result
        {"optimizer.decay_steps": 7},
        {"train.validate_every": 77},  # no checkpoints are averaged
        {"train.seed": 3, "train.accumulation": 4, "data.workers": 2},
        {"decode.temperature": 1.0},
    ],
    ids=str,
)
def test_a_value_without_effect_is_no_departure(changes):
    assert lines(config("base.py", changes)) == []


def test_the_length_penalty_of_greedy_search_is_no_departure():
    changes = {"decode.beam_size": 1, "decode.length_penalty": 0.9}
    assert fields(config("base.py", changes)) == ["decode.beam_size"]


MODEL_FIELDS = [field for field in declarations(ExperimentConfig) if field.startswith("model.")]
RECURRENT = ExperimentConfig(model=ModelConfig(kind="recurrent"))
READ = [field for field in MODEL_FIELDS if is_read(field, RECURRENT)]
# For each field that a recurrent model does not read, a value other than the default.
UNREAD_VALUES = OTHER_VALUES | {
    "model.max_positions": 17,
    "model.max_distance": 5,
    "model.equal_parameters": True,
    "model.prefix": "bidirectional",
    "model.rope_base": 100.0,
    "model.rope_fraction": 0.5,
    "model.patch_size": 2,
    "model.pooling": "mean",
    "model.fused_attention": True,
    "model.remat": "block",
    "model.scan_layers": True,
}
UNREAD = {field: UNREAD_VALUES[field] for field in MODEL_FIELDS if field not in READ}


@pytest.mark.parametrize("kind", ["recurrent", "recurrent_attention"])
def test_fields_that_a_recurrent_model_does_not_read_are_no_departures(kind):
    assert fields(config("base.py", {"model.kind": kind, **UNREAD})) == ["model.kind"]


def computation(**changes):
    """The operations of a model as text, including its initialization."""
    sizes = {"num_layers": 1, "d_model": 12, "d_ff": 8, "num_heads": 2} | changes
    model = build_model(ModelConfig(**sizes), 11)
    tokens = TokenBatch.from_tokens(jnp.ones((1, 3), int))
    return str(jax.make_jaxpr(model.init)(jax.random.key(0), tokens, tokens))


@pytest.mark.parametrize(
    "kind",
    # The model with attention has all modules of the other, and both read the same fields.
    [pytest.param("recurrent", marks=pytest.mark.slow), "recurrent_attention"],
)
def test_a_recurrent_model_depends_on_exactly_the_fields_declared_as_read(kind):
    plain = computation(kind=kind)
    unread = {field.removeprefix("model."): value for field, value in UNREAD.items()}
    assert computation(kind=kind, **unread) == plain
    for field in {*READ} - {"model.kind", "model.dropout_rate"}:  # the rate is an argument
        value = "gru" if field == "model.cell" else OTHER_VALUES[field]
        assert computation(kind=kind, **{field.removeprefix("model."): value}) != plain, field


def test_a_transformer_does_not_read_the_fields_of_other_models():
    unread = {"cell": "gru", "equal_parameters": True, "rope_base": 100.0, "rope_fraction": 0.5}
    assert computation(**unread, max_positions=17, prefix="bidirectional") == computation()


def test_a_decoder_only_model_reads_the_prefix_and_no_encoder():
    plain = computation(kind="decoder_only")
    assert computation(kind="decoder_only", encoder_layers=3) == plain
    assert computation(kind="decoder_only", prefix="bidirectional") != plain
    assert fields(config("base.py", {"model.kind": "decoder_only", "model.encoder_layers": 3})) == [
        "model.kind"
    ]


def test_without_norms_the_name_of_the_norm_is_no_departure():
    changes = {"model.residual": "rezero", "model.norm": "rms_norm"}
    assert fields(config("base.py", changes)) == ["model.residual"]
    rezero = computation(residual="rezero")
    assert computation(residual="rezero", norm="rms_norm") == rezero != computation()


def test_a_departure_is_a_single_line():
    named = lines(config("multi30k.py:smoke", {"model.positions": "rope", "model.encoder_layers": 3}))
    assert all("\n" not in line for line in named)
    assert (
        "model.positions is 'rope'; the paper's: 'sinusoidal' (section 3.5), 'learned' (Table 3, row E)"
        in named
    )
