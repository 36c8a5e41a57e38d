"""Runs CTranslate2 in a separate process, in float32.

The sentences and the weights are the same as for our decoder.
"""

import functools

import ctranslate2

from experiments.machine import cores
from experiments.process import keep_freed_memory
from experiments.speed.peer import Prepared, serve, time_calls
from transformer.config import BOS, EOS, PAD

# Batch sizes to try, in tokens with padding. Each worker of CTranslate2 translates one batch at a time.
BATCH_TOKENS = (512, 1_024, 2_048, 8_192)


def prepare(
    folder: str, sources: list[list[int]], beam_size: int, length_penalty: float, num_tokens: int
) -> Prepared:
    """Times every number of workers with every batch size, and prepares the fastest combination."""
    lines = [[str(token) for token in source if token != EOS] for source in sources]
    keep_freed_memory()  # as in our process
    num_cores = len(cores())
    trials = []
    for workers in (number for number in range(1, num_cores + 1) if num_cores % number == 0):
        translator = ctranslate2.Translator(
            folder, compute_type="float32", inter_threads=workers, intra_threads=num_cores // workers
        )
        for batch_tokens in BATCH_TOKENS:
            translate = functools.partial(
                translator.translate_batch,
                lines,
                max_batch_size=batch_tokens,
                batch_type="tokens",
                beam_size=beam_size,
                length_penalty=length_penalty,
                min_decoding_length=num_tokens,
                max_decoding_length=num_tokens,
                suppress_sequences=[[str(PAD)], [str(BOS)]],
            )
            translate()  # warms up
            threads = f"inter_threads={workers}, intra_threads={num_cores // workers}"
            settings = f"{threads}, max_batch_size={batch_tokens}"
            trials.append((time_calls(translate), settings, translate))
    _, settings, translate = min(trials, key=lambda trial: trial[0])
    outputs = [[int(token) for token in result.hypotheses[0]] for result in translate()]
    return Prepared(functools.partial(time_calls, translate), {"outputs": outputs, "settings": settings})


if __name__ == "__main__":
    serve(prepare)
