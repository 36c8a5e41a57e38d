"""Exports to MarianMTModel of Hugging Face's transformers.

MarianMTModel differs from the paper's model in two ways. In its position vectors, all sines come before all
cosines. The order of the channels does not change the output of a model, so we write all weights in Marian's
order. Its attention has biases, which we write as zeros.
"""

import json
import warnings
from typing import Any, ClassVar

import numpy as np

from experiments.formats.base import PAPER_ATTENTION, Format, table_lengths, to_numpy
from experiments.trained_model import Trained
from transformer.config import BOS, EOS, PAD, ModelConfig, UserError
from transformer.model.embedding import EMBEDDINGS

# Output limit in tokens, stored for generate(), which otherwise stops at 20.
MAX_OUTPUT_LENGTH = 256
SPECIAL_TOKENS = {
    "decoder_start_token_id": BOS,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


class Marian(Format):
    """Exporter to MarianMTModel."""

    name = "marian"
    packages = ("transformers", "torch")
    holds: ClassVar = {
        "kind": ("transformer",),
        "positions": ("sinusoidal",),
        "overflow": (None, "extrapolate", "error"),  # Marian raises an error beyond the end of the table
        "residual": ("post_norm",),
        "norm": ("layer_norm",),
        "feed_forward": ("relu", "gelu"),
        **PAPER_ATTENTION,
    }
    usage = """\
from transformers import MarianMTModel as Model, MarianTokenizer as Tokenizer
text, model = Tokenizer.from_pretrained("{folder}"), Model.from_pretrained("{folder}")
print(text.batch_decode(model.generate(**text(["..."], return_tensors="pt")), skip_special_tokens=True))"""
    note = (
        "the eps of Marian's LayerNorm is 1e-5, not 1e-6; generate() divides log-probabilities by "
        "length^length_penalty; a finished hypothesis frees a place in the beam; if the package sacremoses "
        "is installed, MarianTokenizer changes punctuation"
    )

    def check(self, config):
        super().check(config)
        for field, width in (("d_k", config.key_width), ("d_v", config.value_width)):
            if width * config.num_heads != config.d_model:
                raise UserError(
                    f"model.{field} is {width}; with --format=marian it must be d_model / num_heads, "
                    f"which is {config.d_model / config.num_heads:g}"
                )

    def write(self, trained, folder):
        """Writes model.safetensors, config.json and generation_config.json."""
        import torch
        from transformers import GenerationConfig, MarianMTModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        peer = MarianMTModel(_configuration(trained))
        weights = _weights(trained.model.config, to_numpy(trained.params))
        state = {name: torch.tensor(array) for name, array in weights.items()}
        # Marian computes the table of sinusoids; the bias of the logits stays zero.
        missing, unexpected = peer.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all(name.endswith(("embed_positions.weight", "logits_bias")) for name in missing), missing
        peer.generation_config = GenerationConfig(
            num_beams=trained.config.decode.beam_size,
            max_length=min(MAX_OUTPUT_LENGTH, *table_lengths(trained)),
            suppress_tokens=[PAD, BOS],
            **SPECIAL_TOKENS,
        )
        peer.save_pretrained(folder)

    def write_tokenizer(self, trained, folder):
        """Writes source.spm, target.spm, vocab.json and tokenizer_config.json."""
        from transformers import MarianTokenizer

        tokenizer, data = trained.tokenizer, trained.config.data
        names = tokenizer.names(range(tokenizer.vocab_size))
        files = {name: folder / f"{name[:6]}.spm" for name in ("source_spm", "target_spm")}
        for path in files.values():
            path.write_bytes(tokenizer.model)
        vocabulary = folder / "vocab.json"
        vocabulary.write_text(json.dumps({name: token for token, name in enumerate(names)}))
        # MarianTokenizer warns if sacremoses is missing. We do not want sacremoses: it would change the text.
        with warnings.catch_warnings(action="ignore"):
            MarianTokenizer(
                **{name: str(path) for name, path in files.items()},
                vocab=str(vocabulary),
                source_lang=data.source,
                target_lang=data.target,
                bos_token=names[BOS],
                eos_token=names[EOS],
                pad_token=names[PAD],
                model_max_length=table_lengths(trained)[0],
                clean_up_tokenization_spaces=False,
            ).save_pretrained(folder)

    def score(self, folder, sources, targets):
        import torch
        from transformers import MarianMTModel

        peer = MarianMTModel.from_pretrained(folder)
        scores = []
        with torch.inference_mode():
            for source, target in zip(sources, targets, strict=True):
                inputs = [torch.tensor([tokens]) for tokens in ([*source, EOS], [BOS, *target])]
                logits = peer(input_ids=inputs[0], decoder_input_ids=inputs[1]).logits
                labels = torch.tensor([*target, EOS])[:, None]
                scores.append(logits[0].log_softmax(-1).gather(-1, labels)[:, 0].numpy())
        return scores


def _configuration(trained: Trained):
    from transformers import MarianConfig

    config = trained.model.config
    return MarianConfig(
        vocab_size=trained.model.vocab_size,
        max_position_embeddings=max(table_lengths(trained)),
        d_model=config.d_model,
        encoder_layers=config.encoder_depth,
        decoder_layers=config.decoder_depth,
        encoder_attention_heads=config.num_heads,
        decoder_attention_heads=config.num_heads,
        encoder_ffn_dim=config.d_ff,
        decoder_ffn_dim=config.d_ff,
        activation_function=config.feed_forward,
        dropout=config.dropout_rate,
        scale_embedding=True,
        share_encoder_decoder_embeddings=config.embeddings == "three_way",
        tie_word_embeddings=config.embeddings != "untied",
        forced_eos_token_id=None,
        **SPECIAL_TOKENS,
    )


def _weights(config: ModelConfig, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the weights of the whole model by their names in Marian."""
    order = np.arange(config.d_model).reshape(-1, 2).T.flatten()  # even channels first
    names, tables = EMBEDDINGS[config.embeddings], params["embedding"]
    weights = {
        "model.encoder.embed_tokens.weight": tables[names.source][:, order],
        "model.decoder.embed_tokens.weight": tables[names.target][:, order],
        "lm_head.weight": tables[names.output][:, order],
    }
    if config.embeddings == "three_way":
        weights["model.shared.weight"] = weights["lm_head.weight"]
    for stack, depth in (("encoder", config.encoder_depth), ("decoder", config.decoder_depth)):
        for number in range(depth):
            for name, array in _layer(params[stack][f"layers_{number}"], order).items():
                weights[f"model.{stack}.layers.{number}.{name}"] = array
    return weights


def _layer(params: dict[str, Any], order: np.ndarray) -> dict[str, np.ndarray]:
    weights = {}
    for name, peer_name in (("self_attention", "self_attn"), ("cross_attention", "encoder_attn")):
        if name in params:
            attention = _attention(params[name], order)
            weights |= {f"{peer_name}.{leaf}": array for leaf, array in attention.items()}
            weights |= _norm(f"{peer_name}_layer_norm", params[f"{name}_residual"]["norm"], order)
    inner, outer = params["feed_forward"]["inner"], params["feed_forward"]["outer"]
    weights |= {"fc1.weight": inner["kernel"][order].T, "fc1.bias": inner["bias"]}
    weights |= {"fc2.weight": outer["kernel"][:, order].T, "fc2.bias": outer["bias"][order]}
    return weights | _norm("final_layer_norm", params["feed_forward_residual"]["norm"], order)


def _attention(params: dict[str, Any], order: np.ndarray) -> dict[str, np.ndarray]:
    inputs = {f"{name[0]}_proj": params[name]["kernel"][order] for name in ("query", "key", "value")}
    kernels = inputs | {"out_proj": params["output"]["kernel"][:, order]}
    weights = {f"{name}.weight": kernel.T for name, kernel in kernels.items()}
    return weights | {f"{name}.bias": np.zeros(len(order), np.float32) for name in kernels}


def _norm(name: str, params: dict[str, Any], order: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}.weight": params["scale"][order], f"{name}.bias": params["bias"][order]}
