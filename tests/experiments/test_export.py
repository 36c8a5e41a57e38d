"""What an exported model says equals what ours says. Needs the `peers` extra; in parts skipped without."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exporting import FORMATS
from experiments.exporting.compare import difference, scores
from experiments.exporting.format import export
from experiments.exporting.to_ctranslate2 import vocabulary
from experiments.runs import Trained
from tests.experiments.test_commands import ROOT, SMOKE, environment
from transformer.config import (
    BOS,
    EOS,
    PAD,
    DataConfig,
    DecodeConfig,
    ExperimentConfig,
    TransformerConfig,
    UserError,
)
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.batches import padded
from transformer.decoding.shrinking import ModelSearch
from transformer.model import build, init_params
from transformer.model.positions import POSITIONS

TEXTS = ["two dogs run through the snow", "a man in a red shirt", "zwei Hunde rennen durch den Schnee"]
CONFIG = TransformerConfig(
    encoder_layers=1, decoder_layers=2, d_model=24, d_ff=44, num_heads=3, max_positions=41
)
# Past `max_positions` of a scheme that goes on, but not past what decode.max_source and max_extra allow.
SOURCES = [[9, 5, 23, 8], [4], list(range(4, 39)) + list(range(4, 18))]
TARGETS = [[30, 7], [6, 6, 6, 11, 24], list(range(38, 3, -1))]


def make(**changes) -> Trained:
    """An untrained model with a real tokenizer, as if it came from a run."""
    tokenizer = Tokenizer.train(TEXTS, kind="bpe", vocab_size=40)
    config = ExperimentConfig(
        dataclasses.replace(CONFIG, **changes),
        DataConfig(vocab_size=40),
        decode=DecodeConfig(max_source=60, max_extra=10),
    )
    model = build(config.model, tokenizer.vocab_size)
    return Trained(config, tokenizer, model, weights(model), [1])


def weights(model):
    """Random, norms and biases included."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_params(model, seed=0))

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.2, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def found(trained, length, **changes):
    """Our outputs for `SOURCES`, EOS included, and their log-probabilities."""
    decode = dataclasses.replace(trained.config.decode, length_penalty=0.0, **changes)
    search = jax.jit(ModelSearch(trained.model, decode), static_argnames="length")
    source = padded([np.array([*pieces, EOS]) for pieces in SOURCES])
    best = search(trained.params, source, np.full(len(source), length, np.int32), length=length)
    tokens = [[int(piece) for piece in row if piece != PAD] for row in best.tokens[:, 0]]
    return tokens, np.array(best.score[:, 0])


@pytest.fixture
def ctranslate2():
    return pytest.importorskip("ctranslate2")


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


# Each value that the format holds, in as few models as that takes.
VARIANTS = [
    {},
    {"d_k": 6, "d_v": 6, "embeddings": "two_way"},
    {"norm_placement": "pre", "feed_forward": "gelu", "embeddings": "untied"},
    {"norm": "rms_norm", "feed_forward": "glu"},
    {"norm": "rms_norm", "norm_placement": "pre", "feed_forward": "swiglu", "positions": "rope"},
    {"positions": "learned", "overflow": "clamp", "feed_forward": "reglu"},
    {"positions": "learned", "overflow": "zero", "feed_forward": "geglu"},
    {"positions": "t5_bias", "max_distance": 20, "dropout_sites": "all"},
    {"positions": "t5_bias", "d_k": 6, "d_v": 6},
    {"positions": "sinusoidal_concat"},
    {"positions": "none"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_ctranslate2_says_what_ours_says(ctranslate2, tmp_path, changes):
    """Log-probabilities of given pieces, and of those that a cached, greedy search finds."""
    trained = make(**changes)
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    theirs = FORMATS["ctranslate2"].score(tmp_path / "out", SOURCES, TARGETS)
    for a, b in zip(scores(trained, SOURCES, TARGETS), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    pieces = vocabulary(tmp_path / "out")
    results = ctranslate2.Translator(str(tmp_path / "out")).translate_batch(
        [[pieces[one] for one in source] for source in SOURCES],
        beam_size=1,
        min_decoding_length=0,
        max_decoding_length=20,
        suppress_sequences=[[pieces[PAD]], [pieces[BOS]]],
    )
    ours, _ = found(trained, 20, beam_size=1)
    for tokens, result in zip(ours, results, strict=True):
        assert [pieces[one] for one in tokens if one != EOS] == result.hypotheses[0]


def test_ctranslate2_clamps_where_training_ended(ctranslate2, tmp_path):
    trained = make(positions="learned", overflow="clamp")
    trained = dataclasses.replace(trained, model=trained.model.clone(trained_lengths=(9, 12)))
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    assert difference(trained, FORMATS["ctranslate2"], tmp_path / "out") < 1e-4


def test_ctranslate2_of_learned_positions_ends_where_ours_do(ctranslate2, tmp_path):
    trained = make(positions="learned")
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    fits, long = [list(range(4, 34)) + [4] * extra for extra in (10, 11)]  # EOS is the 41st
    (theirs,) = FORMATS["ctranslate2"].score(tmp_path / "out", [fits], [fits])
    np.testing.assert_allclose(theirs, scores(trained, [fits], [fits])[0], rtol=0, atol=1e-4)
    with pytest.raises(RuntimeError, match="positions >= 41"):
        FORMATS["ctranslate2"].score(tmp_path / "out", [long], [fits])


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_ctranslate2_has_our_eps(ctranslate2, tmp_path, norm):
    """Where the first norm's input is about as small as eps."""
    trained = make(norm=norm, positions="none", embeddings="untied")
    tables = trained.params["embedding"]
    for name in ("source_table", "table"):
        tables[name] = tables[name] * 1e-3
    for stack in ("encoder", "decoder"):
        output = trained.params[stack]["layers_0"]["self_attention"]["output"]
        output["kernel"] = output["kernel"] * 1e-3
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    assert difference(trained, FORMATS["ctranslate2"], tmp_path / "out") < 1e-4


@pytest.mark.parametrize("beam_size", [1, 4])
def test_ctranslate2_finds_what_ours_finds(ctranslate2, tmp_path, beam_size):
    """Where no hypothesis may end before the limit: with those that end, the two searches deal differently."""
    trained = never_ending(make(embeddings="untied"))
    export(trained, FORMATS["ctranslate2"], tmp_path / "out")
    pieces = vocabulary(tmp_path / "out")
    results = ctranslate2.Translator(str(tmp_path / "out")).translate_batch(
        [[pieces[one] for one in source] for source in SOURCES],
        beam_size=beam_size,
        length_penalty=0,
        min_decoding_length=24,
        max_decoding_length=24,
        return_scores=True,
    )
    ours, log_probs = found(trained, 24, beam_size=beam_size)
    for tokens, log_prob, result in zip(ours, log_probs, results, strict=True):
        assert len(tokens) == 24
        assert [pieces[one] for one in tokens] == result.hypotheses[0]
        assert result.scores[0] == pytest.approx(log_prob, abs=1e-3)


def never_ending(trained: Trained) -> Trained:
    """Its special pieces are as good as impossible, so that what a search does with them does not count."""
    table = trained.params["embedding"]["output_table"]
    x = trained.params["decoder"]["layers_1"]["feed_forward_residual"]["norm"]
    # The last norm's bias is 9 in each channel; rows of -1 then make logits of some -200.
    norm = {"scale": x["scale"], "bias": jnp.full_like(x["bias"], 9.0)}
    table = table - table.mean(axis=1, keepdims=True)
    table = table.at[jnp.array([PAD, BOS, EOS])].set(-1.0)
    params = jax.tree.map(lambda leaf: leaf, trained.params)
    params["embedding"]["output_table"] = table
    params["decoder"]["layers_1"]["feed_forward_residual"]["norm"] = norm
    return dataclasses.replace(trained, params=params)


MARIAN = [
    {},
    {"embeddings": "two_way"},
    {"embeddings": "untied"},
    {"feed_forward": "gelu"},
    {"overflow": "error"},
]


def load_marian(transformers, folder):
    """As a user would, but with the eps that its format does not hold."""
    import torch

    peer = transformers.MarianMTModel.from_pretrained(folder).eval()
    for module in peer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return peer


@pytest.mark.parametrize("changes", MARIAN, ids=str)
def test_marian_says_what_ours_says(transformers, tmp_path, changes):
    import torch

    trained = make(**changes)
    export(trained, FORMATS["marian"], tmp_path / "out")
    peer = load_marian(transformers, tmp_path / "out")
    source = [[9, 5, 23, 8, 11, EOS], [4, 6, EOS, PAD, PAD, PAD]]
    target = [[30, 7, 5, 33], [6, 6, 12, 9]]
    ours = trained.model.apply({"params": trained.params}, jnp.array(source), jnp.array(target))
    source, inputs = torch.tensor(source), torch.tensor([[BOS, *line[:-1]] for line in target])
    with torch.no_grad():
        theirs = peer(input_ids=source, attention_mask=source != PAD, decoder_input_ids=inputs).logits
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    generated = peer.generate(source, attention_mask=source != PAD, num_beams=1, max_new_tokens=20)
    search = ModelSearch(trained.model, DecodeConfig(beam_size=1))
    best = search(trained.params, jnp.array(source), jnp.array([20, 20], jnp.int32), 20)
    for row, own in zip(generated, best.tokens[:, 0], strict=True):
        assert [piece for piece in row[1:].tolist() if piece != PAD] == own[own != PAD].tolist()


@pytest.mark.parametrize("beam_size", [1, 4])
def test_marian_finds_what_ours_finds(transformers, tmp_path, beam_size):
    import torch

    trained = never_ending(make(embeddings="untied"))
    export(trained, FORMATS["marian"], tmp_path / "out")
    peer = load_marian(transformers, tmp_path / "out")
    ours, log_probs = found(trained, 24, beam_size=beam_size)
    for source, tokens, log_prob in zip(SOURCES, ours, log_probs, strict=True):
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
    """Its LayerNorm adds 1e-5 to the variance, ours 1e-6; weights are nowhere near as small as that."""
    trained = make()
    export(trained, FORMATS["marian"], tmp_path / "out")
    assert 1e-6 < difference(trained, FORMATS["marian"], tmp_path / "out") < 1e-3


def test_marian_reads_and_writes_text_as_ours_does(transformers, tmp_path):
    trained = make()
    export(trained, FORMATS["marian"], tmp_path / "out")
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "out")
    for text in [*TEXTS, "a snow ; qdog"]:  # q is unknown
        pieces = trained.tokenizer.encode(text)
        assert tokenizer(text).input_ids == pieces
        generated = [BOS, *pieces, PAD]
        if 3 not in pieces:
            assert tokenizer.batch_decode([generated], skip_special_tokens=True) == [text]


def test_marian_is_told_how_to_search(transformers, tmp_path):
    export(make(), FORMATS["marian"], tmp_path / "out")
    files = ("generation_config.json", "config.json")
    generation, config = (json.loads((tmp_path / "out" / name).read_text()) for name in files)
    told = {"decoder_start_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    assert told.items() <= generation.items()
    assert told.items() <= config.items()
    assert (generation["suppress_tokens"], generation["num_beams"]) == ([PAD, BOS], 4)
    assert config["forced_eos_token_id"] is None  # its default is 0, which is our PAD


REFUSED = [
    ("ctranslate2", {"positions": "alibi"}, "model.positions is 'alibi'; --format=ctranslate2 holds: "),
    ("ctranslate2", {"positions": "relative"}, "model.positions is 'relative'; "),
    ("ctranslate2", {"feed_forward": "bilinear"}, "model.feed_forward is 'bilinear'; "),
    (
        "ctranslate2",
        {"kind": "recurrent"},
        "model.kind is 'recurrent'; --format=ctranslate2 holds: transformer",
    ),
    ("ctranslate2", {"d_v": 5}, "model.d_v is 5; --format=ctranslate2 holds what d_k is: 8"),
    ("marian", {"positions": "learned"}, "model.positions is 'learned'; --format=marian holds: sinusoidal"),
    ("marian", {"positions": "sinusoidal_concat"}, "model.positions is 'sinusoidal_concat'; "),
    ("marian", {"norm_placement": "pre"}, "model.norm_placement is 'pre'; --format=marian holds: post"),
    ("marian", {"norm": "rms_norm"}, "model.norm is 'rms_norm'; --format=marian holds: layer_norm"),
    (
        "marian",
        {"feed_forward": "swiglu"},
        "model.feed_forward is 'swiglu'; --format=marian holds: relu, gelu",
    ),
    ("marian", {"overflow": "clamp"}, "model.overflow is 'clamp'; "),
    ("marian", {"kind": "recurrent_attention"}, "model.kind is 'recurrent_attention'; "),
    ("marian", {"d_k": 6}, "model.d_k is 6; --format=marian holds d_model / num_heads: 8"),
    ("marian", {"d_v": 6}, "model.d_v is 6; --format=marian holds d_model / num_heads: 8"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=str)
def test_what_a_format_cannot_hold_is_refused_by_name(name, changes, message):
    with pytest.raises(UserError) as refusal:
        FORMATS[name].check(dataclasses.replace(CONFIG, **changes))
    assert str(refusal.value).startswith(message)
    FORMATS[name].check(CONFIG)


def test_a_refusal_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="model.positions is 'alibi'"):
        export(make(positions="alibi"), FORMATS["ctranslate2"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_scheme_is_exported_or_refused():
    """A scheme that comes later is refused until somebody says how it is written."""
    tested = {changes["positions"] for changes in VARIANTS if "positions" in changes} | {"sinusoidal"}
    refused = {
        changes["positions"] for name, changes, _ in REFUSED if "positions" in changes and name[0] == "c"
    }
    assert tested | refused == set(POSITIONS)


@pytest.fixture(scope="module")
def run(data_dir):
    def run(verb, *arguments, status=0):
        command = [sys.executable, "-m", f"experiments.{verb}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(data_dir), capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def smoke(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    run("train", SMOKE, f"--workdir={folder}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_command_writes_what_its_usage_loads(run, smoke, tmp_path, ctranslate2, transformers, name):
    out = tmp_path / name
    flags = [f"--workdir={smoke}", f"--format={name}", f"--out={out}"]
    lines = run("export", *flags).stdout.strip().split("\n")
    assert lines[0].startswith(f"{out}: config.json")
    assert float(lines[1].split()[-4]) < 1e-3
    exec("\n".join(lines[-3:]), {})
    refusals = [
        (flags, f"error: --out={out} is there already; name another folder\n"),
        (
            [flags[0], "--format=onnx", flags[2]],
            "error: --format is 'onnx'; it must be one of: ctranslate2, marian\n",
        ),
    ]
    for given, line in refusals:
        assert run("export", *given, status=2).stderr == line
