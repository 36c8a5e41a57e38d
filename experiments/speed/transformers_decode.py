"""A peer: `generate` of Hugging Face's transformers, translating the same sentences with the same weights."""

import functools
import os

import numpy as np
import torch
from transformers import MarianMTModel

from experiments.entry import keep_memory
from experiments.speed.peer import seconds, serve
from transformer.config import PAD
from transformer.data.plan import buckets
from transformer.decoding.batches import padded

# Pieces of a batch, padding included: as ours, or all sentences at once.
BATCHES = (1_024, 8_192)


class Translate:
    """Translates all sentences in batches of similar length."""

    def __init__(self, peer: MarianMTModel, sources: list[list[int]], batch: int, options: dict):
        self._peer, self._sources, self._options = peer, sources, options
        lengths = np.array([len(source) for source in sources])
        if batch >= len(sources) * lengths.max():
            self._batches = [np.arange(len(sources))]
        else:
            self._batches = [members for members, _, _ in buckets(lengths, batch)]

    def __call__(self) -> list[list[int]]:
        outputs: list[list[int]] = [[]] * len(self._sources)
        for members in self._batches:
            rows = [np.array(self._sources[member]) for member in members]
            source = torch.from_numpy(padded(rows)).long()
            with torch.inference_mode():
                found = self._peer.generate(source, attention_mask=source != PAD, **self._options)
            for member, line in zip(members, found.tolist(), strict=True):
                outputs[member] = line[1:]  # BOS is the first
        return outputs


def prepare(folder: str, sources: list[list[int]], beam_size: int, alpha: float, pieces: int):
    """Tries each size of batches once; takes the fastest one."""
    keep_memory()  # as ours does: it is the frameworks that are compared
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    peer = MarianMTModel.from_pretrained(folder).eval()
    for module in peer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # its format does not hold it
    peer.generation_config.max_length = None  # else it warns that we say otherwise
    options = {
        "num_beams": beam_size,
        "length_penalty": alpha,
        "min_new_tokens": pieces,
        "max_new_tokens": pieces,
    }
    make = functools.partial(Translate, peer, sources, options=options)
    make(BATCHES[0])()  # warms up
    _, batch = min((seconds(make(batch)), batch) for batch in BATCHES)
    translate = make(batch)
    return translate, {"outputs": translate(), "settings": f"batches of {batch} pieces"}


if __name__ == "__main__":
    serve(prepare)
