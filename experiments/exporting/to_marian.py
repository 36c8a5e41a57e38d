"""MarianMTModel of Hugging Face's transformers: the paper's model with biases and another order of channels.

Its sinusoids are the paper's, all sines first and then all cosines. A model does not mind in which order its
channels stand, so all weights are written in that order. Its attention has biases: zeros.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.exporting.format import Format, arrays, refuse, rows
from experiments.runs import Trained
from transformer.config import BOS, EOS, PAD, TransformerConfig, UserError
from transformer.model.embedding import EMBEDDINGS

HOLDS = {
    "kind": ("transformer",),
    "positions": ("sinusoidal",),
    "overflow": (None, "extrapolate", "error"),  # the table ends, and past its end is an error
    "norm_placement": ("post",),
    "norm": ("layer_norm",),
    "feed_forward": ("relu", "gelu"),
}
# What generate() stops at if not told otherwise; its own default is 20.
MAX_LENGTH = 256


def check(config: TransformerConfig) -> None:
    """Raises a `UserError` where the format cannot hold a model."""
    refuse("marian", config, HOLDS)
    for field, width in (("d_k", config.key_width), ("d_v", config.value_width)):
        if width * config.num_heads != config.d_model:
            raise UserError(
                f"model.{field} is {width}; "
                f"--format=marian holds d_model / num_heads: {config.d_model / config.num_heads:g}"
            )


def write(trained: Trained, folder: Path) -> None:
    """Writes model.safetensors, config.json and generation_config.json."""
    import torch
    from transformers import GenerationConfig, MarianMTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = trained.model.config
    peer = MarianMTModel(_configuration(trained))
    found = {name: torch.tensor(x) for name, x in _weights(config, arrays(trained.params)).items()}
    # What is not ours is a table that it makes by itself, and a bias that is zero.
    missing, unexpected = peer.load_state_dict(found, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("embed_positions.weight", "logits_bias")) for name in missing), missing
    peer.generation_config = GenerationConfig(
        num_beams=trained.config.decode.beam_size,
        max_length=min(MAX_LENGTH, *rows(trained)),
        suppress_tokens=[PAD, BOS],
        decoder_start_token_id=BOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    peer.save_pretrained(folder)


def _configuration(trained: Trained):
    from transformers import MarianConfig

    config = trained.model.config
    return MarianConfig(
        vocab_size=trained.model.vocab_size,
        max_position_embeddings=max(rows(trained)),
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
        decoder_start_token_id=BOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        forced_eos_token_id=None,
    )


def _weights(config: TransformerConfig, params: dict) -> dict[str, np.ndarray]:
    """All weights by Marian's names."""
    order = np.arange(config.d_model).reshape(-1, 2).T.flatten()  # even channels first
    shared, tables = EMBEDDINGS[config.embeddings], params["embedding"]
    weights = {
        "model.encoder.embed_tokens.weight": tables[shared.source][:, order],
        "model.decoder.embed_tokens.weight": tables[shared.target][:, order],
        "lm_head.weight": tables[shared.output][:, order],
    }
    if config.embeddings == "three_way":
        weights["model.shared.weight"] = weights["lm_head.weight"]
    for stack, depth in (("encoder", config.encoder_depth), ("decoder", config.decoder_depth)):
        for number in range(depth):
            for name, x in _layer(params[stack][f"layers_{number}"], order).items():
                weights[f"model.{stack}.layers.{number}.{name}"] = x
    return weights


def _layer(ours: dict, order: np.ndarray) -> dict[str, np.ndarray]:
    weights = {}
    for name, theirs in (("self_attention", "self_attn"), ("cross_attention", "encoder_attn")):
        if name in ours:
            weights |= {f"{theirs}.{leaf}": x for leaf, x in _attention(ours[name], order).items()}
            weights |= _norm(f"{theirs}_layer_norm", ours[f"{name}_residual"]["norm"], order)
    inner, outer = ours["feed_forward"]["inner"], ours["feed_forward"]["outer"]
    weights |= {"fc1.weight": inner["kernel"][order].T, "fc1.bias": inner["bias"]}
    weights |= {"fc2.weight": outer["kernel"][:, order].T, "fc2.bias": outer["bias"][order]}
    return weights | _norm("final_layer_norm", ours["feed_forward_residual"]["norm"], order)


def _attention(ours: dict, order: np.ndarray) -> dict[str, np.ndarray]:
    inputs = {f"{name[0]}_proj": ours[name]["kernel"][order] for name in ("query", "key", "value")}
    kernels = inputs | {"out_proj": ours["output"]["kernel"][:, order]}
    weights = {f"{name}.weight": kernel.T for name, kernel in kernels.items()}
    return weights | {f"{name}.bias": np.zeros(len(order), np.float32) for name in kernels}


def _norm(name: str, ours: dict, order: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}.weight": ours["scale"][order], f"{name}.bias": ours["bias"][order]}


def write_tokenizer(trained: Trained, folder: Path) -> None:
    """Writes source.spm, target.spm, vocab.json and tokenizer_config.json."""
    from transformers import MarianTokenizer

    tokenizer, data = trained.tokenizer, trained.config.data
    names = tokenizer.names(range(tokenizer.vocab_size))
    files = {name: folder / f"{name[:6]}.spm" for name in ("source_spm", "target_spm")}
    for path in files.values():
        path.write_bytes(tokenizer.model)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({name: piece for piece, name in enumerate(names)}))
    with warnings.catch_warnings(action="ignore"):  # it recommends sacremoses, which would change the text
        MarianTokenizer(
            **{name: str(path) for name, path in files.items()},
            vocab=str(vocabulary),
            source_lang=data.source,
            target_lang=data.target,
            bos_token=names[BOS],
            eos_token=names[EOS],
            pad_token=names[PAD],
            model_max_length=rows(trained)[0],
            clean_up_tokenization_spaces=False,
        ).save_pretrained(folder)


def score(
    folder: Path, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Log-probabilities of each target's pieces and then of EOS."""
    import torch
    from transformers import MarianMTModel

    peer = MarianMTModel.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for source, target in zip(sources, targets, strict=True):
            inputs = [torch.tensor([line]) for line in ([*source, EOS], [BOS, *target])]
            logits = peer(input_ids=inputs[0], decoder_input_ids=inputs[1]).logits
            labels = torch.tensor([*target, EOS])[:, None]
            found.append(logits[0].log_softmax(-1).gather(-1, labels)[:, 0].numpy())
    return found


MARIAN = Format(
    packages=("transformers", "torch"),
    check=check,
    write=write,
    write_tokenizer=write_tokenizer,
    score=score,
    usage="""\
from transformers import MarianMTModel as Model, MarianTokenizer as Tokenizer
text, model = Tokenizer.from_pretrained("{folder}"), Model.from_pretrained("{folder}")
print(text.batch_decode(model.generate(**text(["..."], return_tensors="pt")), skip_special_tokens=True))""",
    note="its LayerNorm eps is 1e-5, not 1e-6; its beam search divides by length^length_penalty; a "
    "hypothesis that ends makes room for another; where sacremoses is installed, punctuation is changed",
)
