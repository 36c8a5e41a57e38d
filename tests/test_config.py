"""Configuration: defaults, conversion from dicts and from text, refused keys and values, and hashes."""

import dataclasses
import json

import pytest

from transformer.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
    UserError,
    check_key,
    declarations,
    difference,
    flatten,
    from_dict,
    from_text,
    option,
    result_hash,
    to_dict,
)


def test_defaults_are_the_base_model_of_the_paper():
    config = ExperimentConfig()
    model, optimizer, train = config.model, config.optimizer, config.train
    assert (model.num_layers, model.d_model, model.d_ff, model.num_heads) == (6, 512, 2048, 8)
    assert (model.key_width, model.value_width, model.dropout_rate) == (64, 64, 0.1)
    assert (model.positions, model.residual) == ("sinusoidal", "post_norm")
    assert (optimizer.name, optimizer.schedule) == ("adam", "paper")
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-9)
    assert (optimizer.warmup_steps, optimizer.learning_rate) == (4_000, None)
    assert (train.steps, train.batch_tokens, train.label_smoothing) == (100_000, 25_000, 0.1)
    decode = config.decode
    assert (decode.beam_size, decode.length_penalty, decode.max_extra_length) == (4, 0.6, 50)


def test_a_config_survives_a_round_trip_through_json():
    config = ExperimentConfig(model=ModelConfig(d_k=16), data=DataConfig(options={"lists": 3}))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict({}) == ExperimentConfig()


def test_key_and_value_width_are_d_k_and_d_v_if_set():
    model = ModelConfig(d_model=22, num_heads=3, d_k=5, d_v=7)
    assert (model.key_width, model.value_width) == (5, 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"sead": 1}}, "unknown config key train.sead; did you mean train.seed?"),
        (
            {"train": {"batch_token": 1}},
            "unknown config key train.batch_token; did you mean train.batch_tokens?",
        ),
        ({"data": {"nam": "x"}}, "unknown config key data.nam; did you mean data.name?"),
        ({"modle": {}}, "unknown config key modle; did you mean model?"),
        ({"model": {"num_layer": 2}}, "unknown config key model.num_layer; did you mean model.num_layers?"),
        ({"model": {"zzz": 2}}, "unknown config key model.zzz"),
        ({"model": {"num_layers": 2.5}}, "model.num_layers is 2.5; it must be a whole number"),
        ({"model": {"num_layers": True}}, "model.num_layers is True; it must be a whole number"),
        ({"model": {"d_k": "x"}}, "model.d_k is 'x'; it must be a whole number or None"),
        ({"model": {"equal_parameters": 1}}, "model.equal_parameters is 1; it must be true or false"),
        ({"model": {"norm": 1}}, "model.norm is 1; it must be text"),
        ({"optimizer": {"clip_norm": "x"}}, "optimizer.clip_norm is 'x'; it must be a number or None"),
        ({"model": 3}, "model is 3; it must be a group of fields"),
        ({"data": {"options": 3}}, "data.options is 3; it must map option names to values"),
        ({"model": {"encoder_layers": -1}}, "model.encoder_layers is -1; it must be at least 1"),
        ({"model": {"decoder_layers": 0}}, "model.decoder_layers is 0; it must be at least 1"),
        ({"model": {"max_distance": 0}}, "model.max_distance is 0; it must be at least 1"),
        ({"model": {"num_kv_heads": 0}}, "model.num_kv_heads is 0; it must be at least 1"),
        (
            {"model": {"num_kv_heads": 3}},
            "model.num_kv_heads is 3; it must be a divisor of model.num_heads (8)",
        ),
        (
            {"model": {"num_kv_heads": 16}},
            "model.num_kv_heads is 16; it must be a divisor of model.num_heads (8)",
        ),
        ({"model": {"logit_cap": 0}}, "model.logit_cap is 0.0; it must be above 0"),
        ({"model": {"attention_window": 0}}, "model.attention_window is 0; it must be at least 1"),
        ({"model": {"rope_base": 1}}, "model.rope_base is 1.0; it must be above 1"),
        ({"model": {"rope_fraction": 0}}, "model.rope_fraction is 0.0; it must be above 0 and at most 1"),
        ({"model": {"rope_fraction": 1.5}}, "model.rope_fraction is 1.5; it must be above 0 and at most 1"),
        ({"train": {"z_loss": -1e-4}}, "train.z_loss is -0.0001; it must be at least 0"),
        ({"train": {"seed": 2**32}}, "train.seed is 4294967296; it must be at least 0 and below 2^32"),
        ({"train": {"seed": -1}}, "train.seed is -1; it must be at least 0 and below 2^32"),
        (
            {"decode": {"sampling": True, "seed": 2**32}},
            "decode.seed is 4294967296; it must be at least 0 and below 2^32",
        ),
        ({"model": {"num_layers": -1}}, "model.num_layers is -1; it must be at least 1"),
        ({"model": {"max_positions": 1}}, "model.max_positions is 1; it must be at least 2"),
        ({"model": {"dropout_rate": 1.0}}, "model.dropout_rate is 1.0; it must be at least 0 and below 1"),
        ({"model": {"d_model": 100}}, "model.d_model is 100; it must be a multiple of model.num_heads (8)"),
        ({"model": {"dtype": "int8"}}, "model.dtype is 'int8'; it must be float32 or bfloat16"),
        ({"data": {"target": "en"}}, "data.target is 'en'; it must be a different language from data.source"),
        ({"data": {"tokenizer": "wp"}}, "data.tokenizer is 'wp'; it must be bpe, unigram or char"),
        ({"data": {"vocab_size": 7}}, "data.vocab_size is 7; it must be at least 8"),
        ({"data": {"workers": -1}}, "data.workers is -1; it must be at least 0"),
        ({"data": {"data_dir": "gs://b"}}, "data.data_dir is 'gs://b'; it must be a path on this machine"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate is 0.0; it must be above 0"),
        ({"optimizer": {"clip_norm": 0.0}}, "optimizer.clip_norm is 0.0; it must be above 0"),
        ({"optimizer": {"decay_steps": 0}}, "optimizer.decay_steps is 0; it must be at least 1"),
        ({"optimizer": {"weight_decay": -1.0}}, "optimizer.weight_decay is -1.0; it must be at least 0"),
        (
            {"optimizer": {"weight_decay": 0.1}},
            "optimizer.weight_decay is 0.1; it must be 0 with optimizer.name=adam; only adamw and muon decay weights",
        ),
        ({"train": {"steps": 0}}, "train.steps is 0; it must be at least 1"),
        ({"train": {"patience": 0}}, "train.patience is 0; it must be at least 1"),
        (
            {"decode": {"average_last": 11}},
            "decode.average_last is 11; it must be at most train.keep_last (10)",
        ),
        ({"decode": {"max_source_length": 1}}, "decode.max_source_length is 1; it must be at least 2"),
        ({"decode": {"length_penalty": -1}}, "decode.length_penalty is -1.0; it must be at least 0"),
        (
            {"decode": {"min_output_length": 9, "max_output_length": 8}},
            "decode.max_output_length is 8; it must be at least decode.min_output_length (9)",
        ),
        ({"decode": {"top_k": 5}}, "decode.top_k is 5; it must be None unless decode.sampling is true"),
        ({"decode": {"temperature": 0}}, "decode.temperature is 0.0; it must be above 0"),
        ({"decode": {"top_p": 1.5}}, "decode.top_p is 1.5; it must be above 0 and at most 1"),
        ({"decode": {"top_k": 0}}, "decode.top_k is 0; it must be at least 1"),
    ],
)
def test_a_bad_value_gives_a_one_line_error(values, message):
    with pytest.raises(UserError) as error:
        from_dict(values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("num_layers", "unknown config key num_layers; did you mean model.num_layers?"),
        ("model.positon", "unknown config key model.positon; did you mean model.positions?"),
        ("model", "model is a group of fields; name one of its fields, such as model.kind"),
        (
            "data.options",
            "data.options is a group of fields; name one of its fields, such as data.options.NAME",
        ),
        ("zzz", "unknown config key zzz; docs/family.md"),
    ],
)
def test_the_error_for_a_bad_key_suggests_only_similar_keys(key, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        check_key(key)


def test_every_declared_key_is_accepted():
    for key in {*declarations(ExperimentConfig), "data.options.anything"} - {"data.options"}:
        check_key(key)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "3", 3),
        (float, "3", 3.0),
        (int | None, "None", None),
        (bool, "False", False),
        (bool, "true", True),
        (str, "3", "3"),
        (str | None, "x", "x"),
    ],
)
def test_text_is_converted_to_the_type_of_the_field(kind, text, value):
    read = from_text(kind, text, "a.b")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (int, "2.5", "a.b is '2.5'; it must be a whole number"),
        (float | None, "x", "a.b is 'x'; it must be a number or None"),
        (bool, "1", "a.b is '1'; it must be true or false"),
    ],
)
def test_text_that_does_not_fit_the_type_is_refused(kind, text, message):
    with pytest.raises(UserError, match=message):
        from_text(kind, text, "a.b")


def test_every_section_is_frozen():
    config = ExperimentConfig()
    for field in dataclasses.fields(ExperimentConfig):
        if field.name != "task":
            section = getattr(config, field.name)
            assert section.section == field.name
            with pytest.raises(dataclasses.FrozenInstanceError):
                section.section_field = 1


def test_a_field_declares_either_the_values_of_the_paper_or_a_reason_why_it_has_none():
    for declaration in declarations(ExperimentConfig).values():
        assert bool(declaration.paper) != bool(declaration.not_in_paper)
        assert all(values for values in declaration.paper.values())
    with pytest.raises(TypeError, match="give one of them"):
        option(3)
    with pytest.raises(TypeError, match="give one of them"):
        option(3, paper={"section 1": [3]}, not_in_paper="x")


def test_the_result_hash_changes_only_with_fields_that_affect_the_result():
    @dataclasses.dataclass(frozen=True)
    class Options:
        lists: int = option(1, not_in_paper="x")
        folder: str = option("", not_in_paper="x", affects_result=False)

    def hash_of(data=None, **train):
        config = ExperimentConfig(data=DataConfig(**data or {}), train=TrainConfig(**train))
        return result_hash(config, Options)

    base = hash_of({"options": {"lists": 1, "folder": "a"}})
    assert len(base) == 64
    same = [
        hash_of({"options": {"lists": 1, "folder": "b"}}),
        hash_of({"options": {"lists": 1, "folder": "a"}, "data_dir": "x", "workers": 3}),
        hash_of({"options": {"lists": 1, "folder": "a"}}, log_every=7, parallelism="pmap"),
    ]
    assert set(same) == {base}
    different = [
        hash_of({"options": {"lists": 2, "folder": "a"}}),
        hash_of({"options": {"lists": 1, "folder": "a"}}, seed=1),
        hash_of({"options": {"lists": 1, "folder": "a"}, "vocab_size": 9}),
    ]
    assert len({base, *different}) == 4


# For each field that was added after the first published runs, a value other than the default.
ADDED = {
    "model.num_kv_heads": 4,
    "model.qk_norm": True,
    "model.logit_cap": 50.0,
    "model.attention_window": 3,
    "model.attention_gate": True,
    "model.rope_base": 100.0,
    "model.rope_fraction": 0.5,
    "model.prefix": "bidirectional",
    "model.patch_size": 2,
    "model.pooling": "mean",
    "optimizer.final_fraction": 0.1,
    "train.loss_on_source": True,
    "train.z_loss": 1e-4,
    "train.batch_size": 3,
}


def test_the_hash_covers_an_added_field_only_if_it_is_set():
    """The digest is that of the code before the fields were added, by which stored runs are named."""
    added = {key for key, declared in declarations(ExperimentConfig).items() if not declared.hash_default}
    assert added == set(ADDED)
    default = ExperimentConfig()
    assert result_hash(default)[:8] == "118de3ff"
    changed = []
    for key, value in ADDED.items():
        section, _, name = key.partition(".")
        values = dataclasses.replace(getattr(default, section), **{name: value})
        changed.append(result_hash(dataclasses.replace(default, **{section: values})))
    assert len({result_hash(default), *changed}) == 1 + len(added)


def test_difference_names_three_fields_and_counts_the_rest():
    stored = ExperimentConfig()
    given = ExperimentConfig(
        model=ModelConfig(num_layers=2, d_ff=8, norm="rms_norm"),
        data=DataConfig(options={"lists": 3}, workers=1),
    )
    assert difference(stored, given) == (
        "model.num_layers is 6 there, 2 here; model.d_ff is 2048 there, 8 here; "
        "model.norm is 'layer_norm' there, 'rms_norm' here; and 2 more"
    )
    assert difference(stored, stored) == ""


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
