"""A peer: torch.nn.Transformer, trained on the same sentences, in a process of its own.

Reads a line with the name of a shape, then numbers of steps, one a line; answers each with a line of JSON:
target pieces trained on and seconds.
"""

import itertools
import json
import math
import os
import sys
import time

import torch
from torch import nn

from experiments.entry import keep_memory
from experiments.speed.workload import SHAPES, VOCAB, Shape, bucketed
from transformer.config import BOS, PAD


class Model(nn.Module):
    """Embeddings shared three ways, sinusoids, nn.Transformer."""

    def __init__(self, shape: Shape):
        super().__init__()
        config = shape.model
        self.scale = config.d_model**0.5
        self.embedding = nn.Embedding(VOCAB, config.d_model)
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

    def forward(self, source, target):
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
        return self.dropout(self.embedding(tokens) * self.scale + self.table[: tokens.shape[1]])


def main() -> None:
    keep_memory()  # as ours does: it is the frameworks that are compared
    shape = SHAPES[sys.stdin.readline().strip()]
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    model = Model(shape)
    for layer in [*model.transformer.encoder.layers, *model.transformer.decoder.layers]:
        layer.dropout.p = layer.self_attn.dropout = 0.0  # the paper drops nothing here, and neither do we
        if hasattr(layer, "multihead_attn"):
            layer.multihead_attn.dropout = 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=PAD)
    batches = itertools.cycle(
        [tuple(torch.from_numpy(side).long() for side in batch) for batch in bucketed(shape, 20_000)]
    )
    for line in sys.stdin:
        tokens, started = 0, time.perf_counter()
        for source, target in itertools.islice(batches, int(line)):
            loss = loss_fn(model(source, target).flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tokens += int((target != PAD).sum())
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
