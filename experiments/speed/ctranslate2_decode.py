"""A peer: CTranslate2 in float32, translating the same sentences with the same weights."""

import functools
import os

import ctranslate2

from experiments.entry import keep_memory
from experiments.speed.peer import seconds, serve
from transformer.config import BOS, EOS, PAD

# Pieces of a batch, padding included; one such batch is translated by each of its workers.
BATCHES = (512, 1_024, 2_048, 8_192)


def prepare(folder: str, sources: list[list[int]], beam_size: int, alpha: float, pieces: int):
    """Tries each way to use the cores and each size of batches once; takes the fastest one."""
    lines = [[str(piece) for piece in source if piece != EOS] for source in sources]
    keep_memory()  # as ours does
    cores = len(os.sched_getaffinity(0))
    found = []
    for workers in (number for number in range(1, cores + 1) if cores % number == 0):
        translator = ctranslate2.Translator(
            folder, compute_type="float32", inter_threads=workers, intra_threads=cores // workers
        )
        for batch in BATCHES:
            translate = functools.partial(
                translator.translate_batch,
                lines,
                max_batch_size=batch,
                batch_type="tokens",
                beam_size=beam_size,
                length_penalty=alpha,
                min_decoding_length=pieces,
                max_decoding_length=pieces,
                suppress_sequences=[[str(PAD)], [str(BOS)]],
            )
            translate()  # warms up
            chosen = f"inter_threads={workers}, intra_threads={cores // workers}, max_batch_size={batch}"
            found.append((seconds(translate), chosen, translate))
    _, chosen, translate = min(found, key=lambda one: one[0])
    outputs = [[int(piece) for piece in result.hypotheses[0]] for result in translate()]
    return translate, {"outputs": outputs, "settings": chosen}


if __name__ == "__main__":
    serve(prepare)
