"""Trains torch.nn.Transformer in a separate process, on the same sentences as our training.

On a GPU, the model is compiled and computes in bfloat16. The result of a turn has the seconds and the number
of target tokens.
"""

import functools
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.cli import keep_freed_memory
from experiments.machine import cores
from experiments.speed.peer import Prepared, serve
from experiments.speed.workload import SHAPES, VOCAB_SIZE, Shape, length_sorted_batches
from transformer.config import BOS, EOS, PAD

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Model(nn.Module):
    """nn.Transformer with sinusoids. Source, target and output embeddings share one matrix."""

    def __init__(self, shape: Shape):
        super().__init__()
        config = shape.model
        self.scale = config.d_model**0.5
        self.embedding = nn.Embedding(VOCAB_SIZE, config.d_model)
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


def train(model: Model, optimizer: torch.optim.Optimizer, batches: Iterator, steps: int) -> dict[str, float]:
    """Trains for `steps` steps. Returns the seconds and the number of target tokens."""
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=PAD)
    counts, started = [], time.perf_counter()
    for source, target in itertools.islice(batches, steps):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            loss = loss_fn(model(source, target).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counts.append((target != PAD).sum())
    tokens = sum(map(int, counts))  # waits for the device
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def prepare(shape: str, length: int | None = None, batch_tokens: int | None = None) -> Prepared:
    """Makes the model and the batches.

    Args:
      shape: a key of `SHAPES`.
      length: the length of all sentences; if None, the sentences of the shape.
      batch_tokens: target tokens per batch of sentences of one length.
    """
    keep_freed_memory()  # as in our process, so that only the frameworks differ
    torch.manual_seed(0)
    torch.set_num_threads(len(cores()))
    model = Model(SHAPES[shape]).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9)
    if length is None:
        pairs = length_sorted_batches(SHAPES[shape], 20_000)
    else:
        rng = np.random.default_rng(0)
        pairs = [rng.integers(EOS + 1, VOCAB_SIZE, (2, batch_tokens // length, length))]
    batches: Any = itertools.cycle(
        [tuple(torch.from_numpy(side).long().to(DEVICE) for side in batch) for batch in pairs]
    )
    run = torch.compile(model) if DEVICE == "cuda" else model
    return Prepared(functools.partial(train, run, optimizer, batches), {})


if __name__ == "__main__":
    serve(prepare)
