"""What departs from the paper is named, and nothing else is."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.launcher.sweep import load_module
from transformer.config import ExperimentConfig, TransformerConfig, flatten, from_dict, to_dict
from transformer.fidelity import LEFT_OPEN, READ_BY_RECURRENT, REPORTED, departures
from transformer.model import build

ROOT = Path(__file__).parent.parent
ROWS = load_module(str(ROOT / "configs/table3.py"), "config").ROWS


def config(case, **changes):
    """A config file's config; `changes` are fields, with __ for the dot."""
    name, _, argument = case.partition(":")
    values = to_dict(
        from_dict(load_module(str(ROOT / "configs" / name), "config").get_config(argument).to_dict())
    )
    for key, value in changes.items():
        section, field = key.split("__")
        values[section][field] = value
    return from_dict(values)


def departing(config):
    """The fields that are named; each departure begins with its field."""
    return [line.split()[0] for line in departures(config)]


def test_every_field_is_classified_once():
    """A field that is added has to be: has the paper a value for it, or does it leave it open?"""
    assert sorted([*REPORTED, *LEFT_OPEN]) == sorted(flatten(to_dict(ExperimentConfig())))
    assert all(reason for reason in LEFT_OPEN.values())
    assert all(values for sources in REPORTED.values() for values in sources.values())


@pytest.mark.parametrize(
    "case", ["base.py", "big.py", "wmt14.py", "wmt14.py:big", *(f"table3.py:{row}" for row in ROWS)]
)
def test_the_papers_configs_depart_in_nothing(case):
    assert departures(config(case)) == []


@pytest.mark.parametrize("case", ["wmt14.py:en-fr", "wmt14.py:en-fr,big"])
def test_french_departs_in_its_pieces_alone(case):
    assert departures(config(case)) == [
        "data.tokenizer is 'bpe'; the paper's with wmt14_translate/fr-en: 'word piece' (section 5.1)"
    ]


def test_t2t_departs_in_exactly_what_it_sets():
    t2t, base = (flatten(to_dict(config(case))) for case in ("t2t.py", "base.py"))
    assert departing(config("t2t.py")) == [key for key in t2t if t2t[key] != base[key]]
    assert departures(config("t2t.py")) == [
        "model.dropout_sites is 'all'; the paper's: 'paper' (section 5.4)",
        "model.positions is 'sinusoidal_concat'; the paper's: 'sinusoidal' (section 3.5), 'learned' (Table 3, row E)",
        "model.norm_placement is 'pre'; the paper's: 'post' (section 3.1)",
        "optimizer.beta2 is 0.997; the paper's: 0.98 (section 5.3)",
        "optimizer.warmup_steps is 8000; the paper's: 4000 (section 5.3)",
        f"optimizer.learning_rate is {2 * (512 * 8_000) ** -0.5!r}; the paper's: (d_model * warmup_steps)^-0.5 (equation 3)",
    ]


@pytest.mark.parametrize(
    "case",
    ["base.py:smoke", "big.py:smoke", "multi30k.py", "number_words.py", "text.py", "table3.py:multi30k"],
)
def test_what_is_not_the_papers_says_so(case):
    assert departures(config(case))


OTHERS = {
    "model.kind": "recurrent", "model.num_layers": 3, "model.encoder_layers": 3, "model.decoder_layers": 3,
    "model.d_model": 768, "model.d_ff": 512, "model.num_heads": 2, "model.d_k": 65, "model.d_v": 32,
    "model.dropout_rate": 0.4, "model.dropout_sites": "all", "model.positions": "rope", "model.overflow": "clamp",
    "model.norm": "rms_norm", "model.norm_placement": "pre", "model.feed_forward": "swiglu",
    "model.embeddings": "untied", "model.dtype": "bfloat16", "data.name": "multi30k", "data.source": "fr",
    "data.target": "fr", "data.train": "train[:99%]", "data.validation": "x.tsv", "data.test": "x.tsv",
    "data.tokenizer": "unigram", "data.vocab_size": 40_500, "optimizer.beta1": 0.5, "optimizer.beta2": 0.5,
    "optimizer.epsilon": 1e-8, "optimizer.warmup_steps": 8_000, "optimizer.learning_rate": 1e-3, "train.steps": 7,
    "train.batch_tokens": 4_096, "train.label_smoothing": 0.3, "train.validate_every": 1_000, "train.patience": 10,
    "decode.sampling": True, "decode.beam_size": 5, "decode.penalty": "length", "decode.length_penalty": 0.7,
    "decode.max_extra": 100, "decode.max_length": 100, "decode.min_length": 2, "decode.average_last": 10,
}  # fmt: skip


def test_every_field_has_another_value():
    assert list(OTHERS) == list(REPORTED)


@pytest.mark.parametrize("field", OTHERS)
def test_another_value_is_named_and_nothing_else(field):
    """Of wmt14.py, which averages checkpoints, so that every field is read."""
    changed = config("wmt14.py", **{field.replace(".", "__"): OTHERS[field]})
    stacks = {"model.encoder_layers", "model.decoder_layers"} & {field}  # a stack alone also unbalances them
    assert departing(changed) == [field, *(["model.encoder_layers"] if stacks else [])]
    if field != "data.target":  # fr: of the other pair
        assert departures(changed)[0].startswith(f"{field} is {OTHERS[field]!r}; the paper's: ")


def test_what_belongs_to_the_other_pair_of_languages_is_named():
    assert departures(config("base.py", data__target="fr", data__vocab_size=32_000)) == [
        "data.target is 'fr'; the paper's with wmt14_translate/de-en: 'de' (section 5.1)",
        "data.vocab_size is 32000; the paper's with wmt14_translate/de-en: 37000 (section 5.1)",
    ]
    reverse = config("base.py", data__source="de", data__target="en")
    assert departing(reverse) == ["data.source", "data.target"]


def test_depths_that_differ_are_named():
    """12 and 2 are named twice over: 12 alone, too, is nobody's."""
    assert departures(config("base.py", model__encoder_layers=8, model__decoder_layers=4)) == [
        "model.encoder_layers is 8 and model.decoder_layers 4; the paper's: equally many (section 3.1)"
    ]
    assert departures(config("base.py", model__decoder_layers=2)) == [
        "model.encoder_layers is 6 and model.decoder_layers 2; the paper's: equally many (section 3.1)"
    ]
    assert len(departures(config("base.py", model__encoder_layers=12, model__decoder_layers=2))) == 2


def test_what_no_one_model_has_is_named():
    assert departures(config("base.py", model__num_layers=2, model__num_heads=16)) == [
        "model.num_layers is 2, model.num_heads is 16; no one model of the paper's has this (Table 3)"
    ]
    assert departures(config("base.py", model__dropout_rate=0.3)) == [
        "model.dropout_rate is 0.3; the paper's with big alone (Table 3)"
    ]
    assert departing(config("base.py", train__steps=300_000)) == ["train.steps"]
    assert departing(config("big.py", model__dropout_rate=0.1)) == ["model.d_model"]
    assert departing(config("big.py", model__d_k=64, model__d_v=64)) == []


def test_a_version_of_the_data_is_the_same_data():
    assert departures(config("base.py", data__name="wmt14_translate/de-en:1.0.0")) == []
    assert departing(config("base.py", data__name="wmt14_translate/de-en:1.0.0", data__target="fr")) == [
        "data.target"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"model__d_k": 64, "model__d_v": 64},  # what None stands for
        {"model__encoder_layers": 6},
        {"model__encoder_layers": 4, "model__decoder_layers": 4, "model__num_layers": 17},
        {"model__cell": "gru"},
        {"model__equal_parameters": True},
        {"model__dropout_rate": 0.0, "model__dropout_sites": "all"},
        {"model__overflow": "extrapolate"},
        {"model__overflow": "error"},  # a refusal changes no result
        {"train__validate_every": 77},  # no checkpoints are averaged
        {"train__seed": 3, "train__accumulation": 4, "data__workers": 2},
    ],
    ids=str,
)
def test_what_has_no_effect_is_not_named(changes):
    assert departures(config("base.py", **changes)) == []


MODEL = {key.removeprefix("model."): value for key, value in OTHERS.items() if key.startswith("model.")}
UNREAD = {key: value for key, value in MODEL.items() if key not in READ_BY_RECURRENT}


@pytest.mark.parametrize("kind", ["recurrent", "recurrent_attention"])
def test_a_recurrent_model_departs_in_what_it_reads(kind):
    unread = {f"model__{key}": value for key, value in UNREAD.items()}
    assert departing(config("base.py", model__kind=kind, **unread)) == ["model.kind"]


def computation(**changes):
    """A model's operations, weights included, as text."""
    sizes = {"num_layers": 1, "d_model": 12, "d_ff": 8, "num_heads": 2} | changes
    model = build(TransformerConfig(**sizes), 11)
    return str(jax.make_jaxpr(model.init)(jax.random.key(0), *[jnp.ones((1, 3), int)] * 2))


@pytest.mark.parametrize("kind", ["recurrent", "recurrent_attention"])
def test_a_recurrent_model_reads_what_it_is_said_to_read(kind):
    plain = computation(kind=kind)
    assert computation(kind=kind, **UNREAD) == plain
    for field in READ_BY_RECURRENT - {"kind", "dropout_rate"}:  # the rate comes with the step
        assert computation(kind=kind, **{field: (MODEL | {"cell": "gru"})[field]}) != plain, field


def test_a_transformer_computes_the_same_whatever_is_left_open():
    """Of the fields that its own schemes do not read."""
    unread = {"cell": "gru", "equal_parameters": True, "max_positions": 17}
    assert computation(**unread) == computation()


def test_greedy_search_has_no_length_penalty():
    assert departing(config("base.py", decode__beam_size=1, decode__length_penalty=0.9)) == [
        "decode.beam_size"
    ]


def test_a_departure_is_one_line():
    named = departures(config("multi30k.py:smoke", model__positions="rope", model__encoder_layers=3))
    assert all("\n" not in line for line in named)
    assert (
        "model.positions is 'rope'; the paper's: 'sinusoidal' (section 3.5), 'learned' (Table 3, row E)"
        in named
    )
