"""Exported models compute the same outputs as the originals. Most tests need the `peers` extra."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.formats import FORMATS, export, largest_difference, score
from experiments.formats.to_ctranslate2 import read_vocabulary
from experiments.trained_model import Trained
from tests.support.commands import call, refuse
from tests.support.tiny import SEQUENCE_SCHEMES
from transformer.config import (
    BOS,
    EOS,
    PAD,
    DataConfig,
    DecodeConfig,
    ExperimentConfig,
    ModelConfig,
    UserError,
)
from transformer.data.batching import pad_rows
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.model_search import ModelSearch
from transformer.model import build_model, parameter_shapes

TEXTS = ["two dogs run through the snow", "a man in a red shirt", "zwei Hunde rennen durch den Schnee"]
CONFIG = ModelConfig(encoder_layers=1, decoder_layers=2, d_model=24, d_ff=44, num_heads=3, max_positions=41)
# The last source has more tokens than `max_positions`, but no more than `decode.max_source_length`.
SOURCES = [[9, 5, 23, 8], [4], list(range(4, 39)) + list(range(4, 18))]
TARGETS = [[30, 7], [6, 6, 6, 11, 24], list(range(38, 3, -1))]


def make_trained(**changes) -> Trained:
    """A model with random weights, including those of norms and biases, and a real tokenizer."""
    tokenizer = Tokenizer.train(TEXTS, kind="bpe", vocab_size=40)
    config = ExperimentConfig(
        model=dataclasses.replace(CONFIG, **changes),
        data=DataConfig(vocab_size=40),
        decode=DecodeConfig(max_source_length=60, max_extra_length=10),
    )
    model = build_model(config.model, tokenizer.vocab_size)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.2, leaf.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))
    return Trained(config, tokenizer, model, params, [1])


def search(trained, length, **changes):
    """The outputs of this library for `SOURCES`, including EOS, and the log-probabilities of the outputs."""
    decode = dataclasses.replace(trained.config.decode, length_penalty=0.0, **changes)
    run = jax.jit(ModelSearch(trained.model, decode), static_argnames="length")
    source = pad_rows([[*tokens, EOS] for tokens in SOURCES])
    result = run(trained.params, source, np.full(len(source), length, np.int32), length=length)
    outputs = [[int(token) for token in row if token != PAD] for row in result.tokens[:, 0]]
    return outputs, np.array(result.score[:, 0])


@pytest.fixture
def ctranslate2():
    return pytest.importorskip("ctranslate2")


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


# Together, these models have every field value that the format ctranslate2 supports.
VARIANTS = [
    {},
    {"d_k": 6, "d_v": 6, "embeddings": "two_way"},
    {"residual": "pre_norm", "feed_forward": "gelu", "embeddings": "untied"},
    {"norm": "rms_norm", "feed_forward": "glu"},
    {"norm": "rms_norm", "residual": "pre_norm", "feed_forward": "swiglu", "positions": "rope"},
    {"positions": "learned", "overflow": "clamp", "feed_forward": "reglu"},
    {"positions": "learned", "overflow": "zero", "feed_forward": "geglu"},
    {"positions": "t5_bias", "max_distance": 20, "dropout_sites": "all"},
    {"positions": "t5_bias", "d_k": 6, "d_v": 6},
    {"positions": "sinusoidal_concat"},
    {"positions": "none"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_ctranslate2_computes_the_same_log_probabilities(ctranslate2, tmp_path, changes):
    """Compares log-probabilities of given tokens, and the outputs of greedy search with a cache."""
    trained = make_trained(**changes)
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    exported = FORMATS["ctranslate2"].score(tmp_path / "out", SOURCES, TARGETS)
    for log_probs, exported_log_probs in zip(score(trained, SOURCES, TARGETS), exported, strict=True):
        np.testing.assert_allclose(log_probs, exported_log_probs, rtol=0, atol=1e-4)
    names = read_vocabulary(tmp_path / "out")
    results = ctranslate2.Translator(str(tmp_path / "out")).translate_batch(
        [[names[token] for token in source] for source in SOURCES],
        beam_size=1,
        min_decoding_length=0,
        max_decoding_length=20,
        suppress_sequences=[[names[PAD]], [names[BOS]]],
    )
    outputs, _ = search(trained, 20, beam_size=1)
    for tokens, result in zip(outputs, results, strict=True):
        assert [names[token] for token in tokens if token != EOS] == result.hypotheses[0]


def test_ctranslate2_clamps_positions_where_training_ended(ctranslate2, tmp_path):
    trained = make_trained(positions="learned", overflow="clamp")
    trained = dataclasses.replace(trained, model=trained.model.clone(trained_lengths=(9, 12)))
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    assert largest_difference(trained, FORMATS["ctranslate2"], tmp_path / "out") < 1e-4


def test_ctranslate2_has_the_same_number_of_learned_positions(ctranslate2, tmp_path):
    trained = make_trained(positions="learned")
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    longest, too_long = [list(range(4, 34)) + [4] * extra for extra in (10, 11)]  # EOS is the 41st token
    (exported,) = FORMATS["ctranslate2"].score(tmp_path / "out", [longest], [longest])
    np.testing.assert_allclose(exported, score(trained, [longest], [longest])[0], rtol=0, atol=1e-4)
    with pytest.raises(RuntimeError, match="positions >= 41"):
        FORMATS["ctranslate2"].score(tmp_path / "out", [too_long], [longest])


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_ctranslate2_has_the_same_eps(ctranslate2, tmp_path, norm):
    """The variance of the first norm's input is about as small as eps, so that eps matters."""
    trained = make_trained(norm=norm, positions="none", embeddings="untied")
    tables = trained.params["embedding"]
    for name in ("source_table", "table"):
        tables[name] = tables[name] * 1e-3
    for stack in ("encoder", "decoder"):
        output = trained.params[stack]["layers_0"]["self_attention"]["output"]
        output["kernel"] = output["kernel"] * 1e-3
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    assert largest_difference(trained, FORMATS["ctranslate2"], tmp_path / "out") < 1e-4


@pytest.mark.parametrize("beam_size", [1, 4])
def test_ctranslate2_finds_the_same_outputs(ctranslate2, tmp_path, beam_size):
    """Hypotheses may not end before the limit, because the two searches treat finished ones differently."""
    trained = never_ending(make_trained(embeddings="untied"))
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    names = read_vocabulary(tmp_path / "out")
    results = ctranslate2.Translator(str(tmp_path / "out")).translate_batch(
        [[names[token] for token in source] for source in SOURCES],
        beam_size=beam_size,
        length_penalty=0,
        min_decoding_length=24,
        max_decoding_length=24,
        return_scores=True,
    )
    outputs, log_probs = search(trained, 24, beam_size=beam_size)
    for tokens, log_prob, result in zip(outputs, log_probs, results, strict=True):
        assert len(tokens) == 24
        assert [names[token] for token in tokens] == result.hypotheses[0]
        assert result.scores[0] == pytest.approx(log_prob, abs=1e-3)


def never_ending(trained: Trained) -> Trained:
    """Gives special tokens a probability near 0, so that their treatment in a search does not matter."""
    table = trained.params["embedding"]["output_table"]
    norm = trained.params["decoder"]["layers_1"]["feed_forward_residual"]["norm"]
    # The last norm has a bias of 9 in each channel; rows of -1 in the table then give logits of about -200.
    norm = {"scale": norm["scale"], "bias": jnp.full_like(norm["bias"], 9.0)}
    table = table - table.mean(axis=1, keepdims=True)
    table = table.at[jnp.array([PAD, BOS, EOS])].set(-1.0)
    params = jax.tree.map(lambda leaf: leaf, trained.params)
    params["embedding"]["output_table"] = table
    params["decoder"]["layers_1"]["feed_forward_residual"]["norm"] = norm
    return dataclasses.replace(trained, params=params)


# Models that the format marian supports.
MARIAN = [
    {},
    {"embeddings": "two_way"},
    {"embeddings": "untied"},
    {"feed_forward": "gelu"},
    {"overflow": "error"},
]


def load_marian(transformers, folder):
    """Loads a model as a user would, and sets eps, which the format does not store."""
    import torch

    peer = transformers.MarianMTModel.from_pretrained(folder).eval()
    for module in peer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return peer


@pytest.mark.parametrize("changes", MARIAN, ids=str)
def test_marian_computes_the_same_log_probabilities_and_greedy_outputs(transformers, tmp_path, changes):
    import torch

    trained = make_trained(**changes)
    export(trained, FORMATS["marian"], tmp_path / "out")
    peer = load_marian(transformers, tmp_path / "out")
    sources, targets = [[9, 5, 23, 8, 11], [4, 6]], [[30, 7, 5, 33], [6, 6, 12, 9]]
    source = torch.from_numpy(pad_rows([[*tokens, EOS] for tokens in sources])).long()
    inputs = torch.tensor([[BOS, *tokens] for tokens in targets])
    with torch.no_grad():
        logits = peer(input_ids=source, attention_mask=source != PAD, decoder_input_ids=inputs).logits
    labels = torch.tensor([[*tokens, EOS] for tokens in targets])[..., None]
    exported = logits.log_softmax(-1).gather(-1, labels)[..., 0].numpy()
    np.testing.assert_allclose(score(trained, sources, targets), exported, rtol=0, atol=1e-4)
    generated = peer.generate(source, attention_mask=source != PAD, num_beams=1, max_new_tokens=20)
    run = ModelSearch(trained.model, DecodeConfig(beam_size=1))
    result = run(trained.params, jnp.asarray(source.numpy(), jnp.int32), jnp.array([20, 20], jnp.int32), 20)
    for row, tokens in zip(generated, result.tokens[:, 0], strict=True):
        assert [token for token in row[1:].tolist() if token != PAD] == tokens[tokens != PAD].tolist()


@pytest.mark.parametrize("beam_size", [1, 4])
def test_marian_finds_the_same_outputs(transformers, tmp_path, beam_size):
    import torch

    trained = never_ending(make_trained(embeddings="untied"))
    export(trained, FORMATS["marian"], tmp_path / "out")
    peer = load_marian(transformers, tmp_path / "out")
    outputs, log_probs = search(trained, 24, beam_size=beam_size)
    for source, tokens, log_prob in zip(SOURCES, outputs, log_probs, strict=True):
        result = peer.generate(
            torch.tensor([[*source, EOS]]),
            num_beams=beam_size,
            min_new_tokens=24,
            max_new_tokens=24,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert result.sequences[0].tolist() == [BOS, *tokens]
        if beam_size > 1:
            assert result.sequences_scores[0].item() == pytest.approx(log_prob, abs=1e-3)


def test_eps_makes_little_difference_in_marian(transformers, tmp_path):
    """Marian adds 1e-5 to a variance and this library 1e-6, but the variances are far larger."""
    trained = make_trained()
    export(trained, FORMATS["marian"], tmp_path / "out")
    assert 1e-6 < largest_difference(trained, FORMATS["marian"], tmp_path / "out") < 1e-3


def test_marian_has_the_same_tokenizer(transformers, tmp_path):
    trained = make_trained()
    export(trained, FORMATS["marian"], tmp_path / "out")
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "out")
    for text in [*TEXTS, "a snow ; qdog"]:  # q is not in the vocabulary
        tokens = trained.tokenizer.encode(text)
        assert tokenizer(text).input_ids == tokens
        if 3 not in tokens:
            assert tokenizer.batch_decode([[BOS, *tokens, PAD]], skip_special_tokens=True) == [text]


def test_marian_has_the_search_settings_of_the_run(transformers, tmp_path):
    export(make_trained(), FORMATS["marian"], tmp_path / "out")
    paths = [tmp_path / "out" / name for name in ("generation_config.json", "config.json")]
    generation, config = (json.loads(path.read_text()) for path in paths)
    tokens = {"decoder_start_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    assert tokens.items() <= generation.items()
    assert tokens.items() <= config.items()
    assert (generation["suppress_tokens"], generation["num_beams"]) == ([PAD, BOS], 4)
    assert config["forced_eos_token_id"] is None  # the default, 0, would be PAD


REFUSED = [
    ("ctranslate2", {"positions": "alibi"}, "model.positions is 'alibi'; --format=ctranslate2 supports only: "),
    ("ctranslate2", {"positions": "relative"}, "model.positions is 'relative'; "),
    ("ctranslate2", {"feed_forward": "bilinear"}, "model.feed_forward is 'bilinear'; "),
    ("ctranslate2", {"kind": "recurrent"}, "model.kind is 'recurrent'; --format=ctranslate2 supports only: transformer"),
    ("ctranslate2", {"d_v": 5}, "model.d_v is 5; with --format=ctranslate2 it must equal model.d_k (8)"),
    ("ctranslate2", {"residual": "sandwich"}, "model.residual is 'sandwich'; "),
    ("ctranslate2", {"norm": "dynamic_tanh"}, "model.norm is 'dynamic_tanh'; "),
    ("ctranslate2", {"rope_base": 100.0}, "model.rope_base is 100.0; --format=ctranslate2 supports only: 10000.0"),
    ("ctranslate2", {"rope_fraction": 0.5}, "model.rope_fraction is 0.5; "),
    *(
        (name, {field: value}, f"model.{field} is {value!r}; --format={name} supports only: ")
        for name in FORMATS
        for field, value in (("num_kv_heads", 1), ("qk_norm", True), ("logit_cap", 2.0), ("attention_window", 3), ("attention_gate", True))
    ),
    ("marian", {"positions": "learned"}, "model.positions is 'learned'; --format=marian supports only: sinusoidal"),
    ("marian", {"positions": "sinusoidal_concat"}, "model.positions is 'sinusoidal_concat'; "),
    ("marian", {"residual": "pre_norm"}, "model.residual is 'pre_norm'; --format=marian supports only: post_norm"),
    ("marian", {"norm": "rms_norm"}, "model.norm is 'rms_norm'; --format=marian supports only: layer_norm"),
    ("marian", {"feed_forward": "swiglu"}, "model.feed_forward is 'swiglu'; --format=marian supports only: relu, gelu"),
    ("marian", {"overflow": "clamp"}, "model.overflow is 'clamp'; "),
    ("marian", {"kind": "recurrent_attention"}, "model.kind is 'recurrent_attention'; "),
    ("marian", {"d_k": 6}, "model.d_k is 6; with --format=marian it must be d_model / num_heads, which is 8"),
    ("marian", {"d_v": 6}, "model.d_v is 6; with --format=marian it must be d_model / num_heads, which is 8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=str)
def test_an_unsupported_model_is_refused_with_the_name_of_the_field(name, changes, message):
    with pytest.raises(UserError) as error:
        FORMATS[name].check(dataclasses.replace(CONFIG, **changes))
    assert str(error.value).startswith(message)
    FORMATS[name].check(CONFIG)


def test_a_refused_export_leaves_no_files(tmp_path):
    with pytest.raises(UserError, match="model.positions is 'alibi'"):
        export(make_trained(positions="alibi"), FORMATS["ctranslate2"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_position_scheme_is_exported_or_refused():
    """A new scheme must be added to `VARIANTS` or to `REFUSED`."""
    exported = {changes["positions"] for changes in VARIANTS if "positions" in changes} | {"sinusoidal"}
    refused = {
        changes["positions"]
        for name, changes, _ in REFUSED
        if name == "ctranslate2" and "positions" in changes
    }
    assert exported | refused == set(SEQUENCE_SCHEMES)


def test_reference_log_probabilities_do_not_depend_on_padding():
    """The log-probabilities of this library are the reference for exported models."""
    trained = make_trained()
    together = score(trained, SOURCES, TARGETS)
    assert [len(log_probs) for log_probs in together] == [len(target) + 1 for target in TARGETS]
    (alone,) = score(trained, SOURCES[:1], TARGETS[:1])
    np.testing.assert_allclose(together[0], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=onnx"], "--format is 'onnx'; it must be one of: ctranslate2, marian"),
        (
            ["--format=marian"],
            "--format=marian needs the package transformers; run pip install -e '.[peers]'",
        ),
        ([], "--format is missing; add --format=VALUE"),
    ],
)
def test_wrong_flags_give_a_one_line_error(monkeypatch, tmp_path, flags, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refuse("export", "--workdir=/nowhere", f"--out={tmp_path}/out", *flags) == message


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_command_prints_code_that_loads_the_model(trained, tmp_path, ctranslate2, transformers, name):
    out = tmp_path / name
    flags = [f"--workdir={trained}", f"--format={name}", f"--out={out}"]
    lines = call("export", *flags).stdout.strip().split("\n")
    assert lines[0].startswith(f"{out}: config.json")
    assert float(lines[1].split()[-4]) < 1e-3
    exec("\n".join(lines[-3:]), {})
    assert refuse("export", *flags) == f"--out={out} exists and is not an empty folder; name another folder"
