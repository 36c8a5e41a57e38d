"""Exports to CTranslate2 (https://opennmt.net/CTranslate2): fills the arrays of a model specification."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from experiments.formats.base import PAPER_ATTENTION, Format, table_lengths, to_numpy
from transformer.config import BOS, EOS, UNK, ModelConfig, UserError
from transformer.model.embedding import EMBEDDINGS
from transformer.model.layers import FEED_FORWARDS
from transformer.model.positions import POSITIONS, PositionScheme, T5Bias

# CTranslate2's names of our activations. CTranslate2 has no identity activation, which `bilinear` would need.
ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "glu": "Sigmoid",
    "reglu": "RELU",
    "geglu": "GELU",
    "swiglu": "SWISH",
}
# Position schemes that are written as a table of vectors.
TABLES = ("sinusoidal", "sinusoidal_concat", "learned", "none")


class CTranslate2(Format):
    """Exporter to CTranslate2."""

    name = "ctranslate2"
    packages = ("ctranslate2",)
    holds: ClassVar = {
        "kind": ("transformer",),
        # Not `relative`: we have a table per head, and CTranslate2 has one table for all heads.
        # Not `alibi`: CTranslate2 applies ALiBi in decoders only.
        "positions": (*TABLES, "rope", "t5_bias"),
        "norm": ("layer_norm", "rms_norm"),
        "residual": ("post_norm", "pre_norm"),
        "feed_forward": tuple(ACTIVATIONS),
        "rope_base": (10_000.0,),
        "rope_fraction": (1.0,),
        **PAPER_ATTENTION,
    }
    usage = """\
import ctranslate2, sentencepiece as spm
text, model = spm.SentencePieceProcessor("{folder}/tokenizer.model"), ctranslate2.Translator("{folder}")
print(text.decode(model.translate_batch([text.encode("...", out_type=str)])[0].hypotheses[0]))"""
    note = (
        "CTranslate2's defaults are a beam of 2, at most 256 output tokens and at most 1,024 input tokens; "
        "CTranslate2's beam search divides log-probabilities by length^length_penalty; a finished hypothesis "
        "frees a place in the beam"
    )

    def check(self, config):
        super().check(config)
        if config.value_width != config.key_width:
            raise UserError(
                f"model.d_v is {config.value_width}; "
                f"with --format=ctranslate2 it must equal model.d_k ({config.key_width})"
            )

    def write(self, trained, folder):
        """Writes model.bin, config.json and shared_vocabulary.json."""
        config, params = trained.model.config, to_numpy(trained.params)
        spec = _specification(config)
        names, tables = EMBEDDINGS[config.embeddings], params["embedding"]
        spec.encoder.embeddings[0].weight = tables[names.source]
        spec.decoder.embeddings.weight = tables[names.target]
        spec.decoder.projection.weight = tables[names.output]
        trained_lengths = trained.model.trained_lengths or (None, None)
        stacks = (("encoder", spec.encoder), ("decoder", spec.decoder))
        lengths = table_lengths(trained)
        for (name, stack), trained_length, length in zip(stacks, trained_lengths, lengths, strict=True):
            _fill_stack(stack, params[name], config)
            if config.positions in TABLES:
                scheme = POSITIONS[config.positions](config, trained_length=trained_length)
                weights = params[name].get("positions", {})
                stack.position_encodings.encodings = position_table(scheme, weights, length)
        tokens = trained.tokenizer.names(range(trained.tokenizer.vocab_size))
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.layer_norm_epsilon = 1e-6
        spec.config.add_source_eos = True
        spec.config.unk_token, spec.config.eos_token = tokens[UNK], tokens[EOS]
        spec.config.bos_token = spec.config.decoder_start_token = tokens[BOS]
        spec.validate()
        spec.optimize()  # stores equal matrices once
        spec.save(str(folder))

    def write_tokenizer(self, trained, folder):
        """Writes tokenizer.model, for SentencePiece."""
        (folder / "tokenizer.model").write_bytes(trained.tokenizer.model)

    def score(self, folder, sources, targets):
        import ctranslate2

        tokens = read_vocabulary(folder)
        texts = ([[tokens[token] for token in line] for line in side] for side in (sources, targets))
        # max_input_length=0 means no limit.
        results = ctranslate2.Translator(str(folder)).score_batch(*texts, max_input_length=0)
        return [np.array(result.log_probs) for result in results]


def read_vocabulary(folder: Path) -> list[str]:
    """Returns the tokens as text. CTranslate2 reads and returns tokens as text."""
    return json.loads((folder / "shared_vocabulary.json").read_bytes())


def position_table(scheme: PositionScheme, params: Mapping[str, Any], length: int) -> np.ndarray:
    """Returns the vector that is added at each position.

    From position `scheme.limit` on, `model.overflow` determines the vectors.
    """
    zeros, positions = jnp.zeros((1, length, scheme.config.d_model)), jnp.arange(length)[None]
    return np.array(scheme.apply({"params": params}, zeros, positions, length)[0])


def _specification(config: ModelConfig):
    from ctranslate2.specs import common_spec, transformer_spec

    options = {
        "pre_norm": config.residual == "pre_norm",
        "rms_norm": config.norm == "rms_norm",
        "activation": common_spec.Activation[ACTIVATIONS[config.feed_forward]],
        "ffn_glu": FEED_FORWARDS[config.feed_forward].gated,
        "head_dim": config.key_width,
        "rotary_dim": 0 if config.positions == "rope" else None,  # 0 rotates all channels of a head
        "relative_attention_bias": config.positions == "t5_bias",
    }
    return transformer_spec.TransformerSpec(
        transformer_spec.TransformerEncoderSpec(config.encoder_depth, config.num_heads, **options),
        transformer_spec.TransformerDecoderSpec(config.decoder_depth, config.num_heads, **options),
    )


def _fill_stack(spec, params: dict[str, Any], config: ModelConfig) -> None:
    if "norm" in params:
        _fill_norm(spec.layer_norm, params["norm"])
    for number, layer_spec in enumerate(spec.layer):
        layer = params[f"layers_{number}"]
        self_attention = layer_spec.self_attention
        _fill_self_attention(self_attention, layer["self_attention"])
        _fill_norm(self_attention.layer_norm, layer["self_attention_residual"]["norm"])
        if config.positions == "t5_bias":
            self_attention.relative_attention_bias = params["positions"]["table"]
            max_distance = config.max_distance or T5Bias.default_max_distance
            self_attention.relative_attention_max_distance = np.int32(max_distance)
        if "cross_attention" in layer:
            _fill_cross_attention(layer_spec.attention, layer["cross_attention"])
            _fill_norm(layer_spec.attention.layer_norm, layer["cross_attention_residual"]["norm"])
        _fill_feed_forward(layer_spec.ffn, layer["feed_forward"])
        _fill_norm(layer_spec.ffn.layer_norm, layer["feed_forward_residual"]["norm"])


def _fill_self_attention(spec, params: dict[str, Any]) -> None:
    _fill(spec.linear[0], params["query"], params["key"], params["value"])
    _fill(spec.linear[1], params["output"])


def _fill_cross_attention(spec, params: dict[str, Any]) -> None:
    _fill(spec.linear[0], params["query"])
    _fill(spec.linear[1], params["key"], params["value"])
    _fill(spec.linear[2], params["output"])


def _fill_feed_forward(spec, params: dict[str, Any]) -> None:
    if "gate" in params:
        _fill(spec.linear_0, params["gate"])  # CTranslate2 applies the activation after linear_0
        _fill(spec.linear_0_noact, params["inner"])
    else:
        _fill(spec.linear_0, params["inner"])
    _fill(spec.linear_1, params["outer"])


def _fill(spec, *layers: dict[str, Any]) -> None:
    """Fills one CTranslate2 linear layer with the concatenated weights of several of our dense layers."""
    spec.weight = np.concatenate([layer["kernel"].T for layer in layers])
    if "bias" in layers[0]:
        spec.bias = np.concatenate([layer["bias"] for layer in layers])


def _fill_norm(spec, params: dict[str, Any]) -> None:
    spec.gamma = params["scale"]
    if "bias" in params:
        spec.beta = params["bias"]
