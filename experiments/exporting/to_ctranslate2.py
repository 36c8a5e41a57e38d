"""CTranslate2: https://opennmt.net/CTranslate2. Its model is a specification whose arrays we fill."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.exporting.format import Format, arrays, refuse, rows
from experiments.runs import Trained
from transformer.config import BOS, EOS, UNK, TransformerConfig, UserError
from transformer.model.embedding import EMBEDDINGS
from transformer.model.layers import FEED_FORWARDS
from transformer.model.order import Positions
from transformer.model.positions import POSITIONS, T5Bias

# Of our activations. It has none that does nothing, which `bilinear` would need.
ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "glu": "Sigmoid",
    "reglu": "RELU",
    "geglu": "GELU",
    "swiglu": "SWISH",
}
# Schemes that are a table to it; any vectors will do.
TABLES = ("sinusoidal", "sinusoidal_concat", "learned", "none")
HOLDS = {
    "kind": ("transformer",),
    # `relative` has a table a head here and one for all heads there; `alibi` biases decoders alone there.
    "positions": (*TABLES, "rope", "t5_bias"),
    "norm": ("layer_norm", "rms_norm"),
    "norm_placement": ("post", "pre"),
    "feed_forward": tuple(ACTIVATIONS),
}


def check(config: TransformerConfig) -> None:
    """Raises a `UserError` where the format cannot hold a model."""
    refuse("ctranslate2", config, HOLDS)
    if config.value_width != config.key_width:
        raise UserError(
            f"model.d_v is {config.value_width}; --format=ctranslate2 holds what d_k is: {config.key_width}"
        )


def write(trained: Trained, folder: Path) -> None:
    """Writes model.bin, config.json and shared_vocabulary.json."""
    config, params = trained.model.config, arrays(trained.params)
    spec = _specification(config)
    shared, tables = EMBEDDINGS[config.embeddings], params["embedding"]
    spec.encoder.embeddings[0].weight = tables[shared.source]
    spec.decoder.embeddings.weight = tables[shared.target]
    spec.decoder.projection.weight = tables[shared.output]
    trained_lengths = trained.model.trained_lengths or (None, None)
    stacks = (("encoder", spec.encoder), ("decoder", spec.decoder))
    for (name, stack), trained_length, length in zip(stacks, trained_lengths, rows(trained), strict=True):
        _fill_stack(stack, params[name], config)
        if config.positions in TABLES:
            own = params[name].get("positions", {})
            scheme = POSITIONS[config.positions](config, trained_length=trained_length)
            stack.position_encodings.encodings = position_table(scheme, own, length)
    pieces = trained.tokenizer.names(range(trained.tokenizer.vocab_size))
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.layer_norm_epsilon = 1e-6
    spec.config.add_source_eos = True
    spec.config.unk_token, spec.config.eos_token = pieces[UNK], pieces[EOS]
    spec.config.bos_token = spec.config.decoder_start_token = pieces[BOS]
    spec.validate()
    spec.optimize()  # stores equal matrices once
    spec.save(str(folder))


def position_table(scheme: Positions, params: dict, length: int) -> np.ndarray:
    """What is added at each position, as far as the scheme goes and beyond as `model.overflow` says."""
    nothing, positions = jnp.zeros((1, length, scheme.config.d_model)), jnp.arange(length)[None]
    return np.array(scheme.apply({"params": params}, nothing, positions, length)[0])


def _specification(config: TransformerConfig):
    from ctranslate2.specs import common_spec, transformer_spec

    options = {
        "pre_norm": config.norm_placement == "pre",
        "rms_norm": config.norm == "rms_norm",
        "activation": common_spec.Activation[ACTIVATIONS[config.feed_forward]],
        "ffn_glu": FEED_FORWARDS[config.feed_forward].gated,
        "head_dim": config.key_width,
        "rotary_dim": 0 if config.positions == "rope" else None,  # 0: all of a head
        "relative_attention_bias": config.positions == "t5_bias",
    }
    return transformer_spec.TransformerSpec(
        transformer_spec.TransformerEncoderSpec(config.encoder_depth, config.num_heads, **options),
        transformer_spec.TransformerDecoderSpec(config.decoder_depth, config.num_heads, **options),
    )


def _fill_stack(spec, ours: dict, config: TransformerConfig) -> None:
    if "norm" in ours:
        _fill_norm(spec.layer_norm, ours["norm"])
    for number, layer in enumerate(spec.layer):
        own = ours[f"layers_{number}"]
        attention = own["self_attention"]
        _fill(layer.self_attention.linear[0], attention["query"], attention["key"], attention["value"])
        _fill(layer.self_attention.linear[1], attention["output"])
        _fill_norm(layer.self_attention.layer_norm, own["self_attention_residual"]["norm"])
        if config.positions == "t5_bias":
            layer.self_attention.relative_attention_bias = ours["positions"]["table"]
            last = np.int32(config.max_distance or T5Bias.farthest)
            layer.self_attention.relative_attention_max_distance = last
        if "cross_attention" in own:
            attention = own["cross_attention"]
            _fill(layer.attention.linear[0], attention["query"])
            _fill(layer.attention.linear[1], attention["key"], attention["value"])
            _fill(layer.attention.linear[2], attention["output"])
            _fill_norm(layer.attention.layer_norm, own["cross_attention_residual"]["norm"])
        feed_forward = own["feed_forward"]
        if "gate" in feed_forward:
            _fill(layer.ffn.linear_0, feed_forward["gate"])  # the one that is activated
            _fill(layer.ffn.linear_0_noact, feed_forward["inner"])
        else:
            _fill(layer.ffn.linear_0, feed_forward["inner"])
        _fill(layer.ffn.linear_1, feed_forward["outer"])
        _fill_norm(layer.ffn.layer_norm, own["feed_forward_residual"]["norm"])


def _fill(spec, *ours: dict) -> None:
    """One product for several of ours, with their outputs next to each other."""
    spec.weight = np.concatenate([one["kernel"].T for one in ours])
    if "bias" in ours[0]:
        spec.bias = np.concatenate([one["bias"] for one in ours])


def _fill_norm(spec, ours: dict) -> None:
    spec.gamma = ours["scale"]
    if "bias" in ours:
        spec.beta = ours["bias"]


def write_tokenizer(trained: Trained, folder: Path) -> None:
    """Writes tokenizer.model, which SentencePiece reads."""
    (folder / "tokenizer.model").write_bytes(trained.tokenizer.model)


def score(
    folder: Path, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Log-probabilities of each target's pieces and then of EOS."""
    import ctranslate2

    pieces = vocabulary(folder)
    texts = ([[pieces[one] for one in line] for line in lines] for lines in (sources, targets))
    found = ctranslate2.Translator(str(folder)).score_batch(*texts, max_input_length=0)  # 0: any
    return [np.array(one.log_probs) for one in found]


def vocabulary(folder: Path) -> list[str]:
    """How the pieces are written, which is how it takes and gives them."""
    return json.loads((folder / "shared_vocabulary.json").read_text())


CTRANSLATE2 = Format(
    packages=("ctranslate2",),
    check=check,
    write=write,
    write_tokenizer=write_tokenizer,
    score=score,
    usage="""\
import ctranslate2, sentencepiece as spm
text, model = spm.SentencePieceProcessor("{folder}/tokenizer.model"), ctranslate2.Translator("{folder}")
print(text.decode(model.translate_batch([text.encode("...", out_type=str)])[0].hypotheses[0]))""",
    note="its defaults are a beam of 2, at most 256 output and 1,024 input pieces; its beam search divides "
    "by length^length_penalty; a hypothesis that ends makes room for another",
)
