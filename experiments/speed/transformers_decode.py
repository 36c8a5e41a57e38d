"""Runs Hugging Face `generate` in a separate process.

The sentences and the weights are the same as for our decoder.
"""

import functools
from typing import Any

import numpy as np
import torch
from transformers import MarianMTModel

from experiments.speed.peer import Prepared, serve, time_calls
from experiments.speed.torch_loop import DEVICE, set_up
from transformer.config import PAD
from transformer.data.batching import length_batches, pad_rows

# Batch sizes to try, in tokens with padding: that of our decoder, and one that is enough for all sentences.
BATCH_TOKENS = (1_024, 8_192)


class BatchTranslator:
    """Translates all sentences, in batches of sentences of similar length."""

    def __init__(
        self, peer: MarianMTModel, sources: list[list[int]], options: dict[str, Any], batch_tokens: int
    ):
        self._peer, self._sources, self._options = peer, sources, options
        lengths = np.array([len(source) for source in sources])
        if batch_tokens >= len(sources) * lengths.max():
            self._batches = [np.arange(len(sources))]
        else:
            self._batches = [batch.members for batch in length_batches(lengths, batch_tokens)]

    def __call__(self) -> list[list[int]]:
        """Returns the tokens of all outputs."""
        outputs: list[list[int]] = [[]] * len(self._sources)
        for members in self._batches:
            rows = pad_rows([self._sources[member] for member in members])
            source = torch.from_numpy(rows).long().to(DEVICE)
            with torch.inference_mode():
                generated = self._peer.generate(source, attention_mask=source != PAD, **self._options)
            for member, tokens in zip(members, generated.tolist(), strict=True):
                outputs[member] = tokens[1:]  # without BOS
        return outputs


def prepare(
    folder: str, sources: list[list[int]], beam_size: int, length_penalty: float, num_tokens: int
) -> Prepared:
    """Times translation with each of `BATCH_TOKENS`, and prepares the fastest."""
    set_up()
    peer = MarianMTModel.from_pretrained(folder).eval().to(DEVICE)
    for module in peer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # the exported files have no field for eps
    peer.generation_config.max_length = None  # otherwise generate() warns about two limits
    options = {
        "num_beams": beam_size,
        "length_penalty": length_penalty,
        "min_new_tokens": num_tokens,
        "max_new_tokens": num_tokens,
    }
    make = functools.partial(BatchTranslator, peer, sources, options)
    make(BATCH_TOKENS[0])()  # warms up
    _, batch_tokens = min((time_calls(make(batch_tokens)), batch_tokens) for batch_tokens in BATCH_TOKENS)
    translate = make(batch_tokens)
    answer = {"outputs": translate(), "settings": f"batches of {batch_tokens} tokens"}
    return Prepared(functools.partial(time_calls, translate), answer)


if __name__ == "__main__":
    serve(prepare)
