"""Trains torch.nn.Transformer in a separate process, on the same sentences as our training.

See `torch_loop` for the settings of PyTorch.
"""

import math

import numpy as np
import torch
from torch import nn

from experiments.speed.peer import Prepared, serve
from experiments.speed.torch_loop import DEVICE, prepare_training, set_up
from experiments.speed.workload import SHAPES, length_sorted_batches
from transformer.config import BOS, EOS, PAD, ExperimentConfig


class Model(nn.Module):
    """nn.Transformer with sinusoids. Source, target and output embeddings share one matrix."""

    def __init__(self, experiment: ExperimentConfig):
        super().__init__()
        config = experiment.model
        self.scale = config.d_model**0.5
        self.embedding = nn.Embedding(experiment.data.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.transformer = nn.Transformer(
            config.d_model,
            config.num_heads,
            config.num_layers,
            config.num_layers,
            config.d_ff,
            config.dropout_rate,
            batch_first=True,
        )
        position = torch.arange(512)[:, None]
        angle = position * torch.exp(torch.arange(0, config.d_model, 2) * (-math.log(1e4) / config.d_model))
        self.register_buffer("table", torch.stack([angle.sin(), angle.cos()], -1).reshape(512, -1))
        for layer in [*self.transformer.encoder.layers, *self.transformer.decoder.layers]:
            layer.dropout.p = layer.self_attn.dropout = 0.0  # only the paper's dropout sites, as in our model
            if hasattr(layer, "multihead_attn"):
                layer.multihead_attn.dropout = 0.0

    def forward(self, source, target):
        """Returns the logits of each target token."""
        inputs = torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], 1)
        padding, length = source == PAD, target.shape[1]
        hidden = self.transformer(
            self.embed(source),
            self.embed(inputs),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            src_key_padding_mask=padding,
            tgt_key_padding_mask=target == PAD,
            memory_key_padding_mask=padding,
        )
        return hidden @ self.embedding.weight.T

    def embed(self, tokens):
        """Returns the scaled embeddings plus sinusoids, with dropout."""
        return self.dropout(self.embedding(tokens) * self.scale + self.table[: tokens.shape[1]])


def smoothed_loss(model: nn.Module, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy per target token, with the paper's label smoothing."""
    logits = model(source, target).flatten(0, 1)
    return nn.functional.cross_entropy(logits, target.flatten(), ignore_index=PAD, label_smoothing=0.1)


def prepare(shape: str, length: int | None = None, batch_tokens: int | None = None) -> Prepared:
    """Makes the model and the batches.

    Args:
      shape: a key of `SHAPES`.
      length: the length of all sentences; if None, the sentences of the shape.
      batch_tokens: target tokens per batch of sentences of one length.
    """
    set_up()
    config = SHAPES[shape].config
    model = Model(config).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9)
    if length is None:
        pairs = length_sorted_batches(SHAPES[shape])
    else:
        rng, vocab_size = np.random.default_rng(0), config.data.vocab_size
        pairs = [rng.integers(EOS + 1, vocab_size, (2, batch_tokens // length, length))]
    return prepare_training(model, smoothed_loss, optimizer, pairs)


if __name__ == "__main__":
    serve(prepare)
