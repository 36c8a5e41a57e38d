"""Times translation with our `Translator` and with peers (other toolkits) that have the same weights.

In each round, our code and each peer take one turn to translate 128 sentences. The sentences are as long as
image captions and are given as tokens. Every toolkit uses beam search, and every output has exactly 24
tokens. The times include the encoder.
"""

import contextlib
import functools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.formats import FORMATS, Format, largest_difference, score
from experiments.speed.peer import PeerProcess, time_calls
from experiments.speed.workload import log_normal_lengths, random_sentence
from experiments.trained_model import Trained
from transformer.config import EOS, PAD, DataConfig, DecodeConfig, ExperimentConfig, ModelConfig
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.translator import Translator
from transformer.model import build_model, init_params

VOCAB_SIZE, NUM_SENTENCES, NUM_TOKENS = 8_000, 128, 24
MEAN_LENGTH, MIN_LENGTH, MAX_LENGTH = 15, 5, 48  # tokens of a source sentence, EOS included
# No output ends early, because the minimum length is above the length limit.
SEARCH = DecodeConfig(beam_size=4, length_penalty=0.6, min_output_length=NUM_TOKENS + 1)
# Two outputs are tied if their log-probabilities, in nats, differ by less than this (float32 rounding).
TIED = 1e-3

# The exporter for each peer.
PEERS: dict[str, Format] = {"ctranslate2": FORMATS["ctranslate2"], "transformers": FORMATS["marian"]}


class NumberTokenizer(Tokenizer):
    """Tokenizer whose texts are token numbers, separated by spaces."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.model, self.sha256 = b"", ""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the numbers in each text, with EOS added."""
        return [[*map(int, text.split()), EOS] for text in texts]

    def unknown(self, text: str) -> str:
        """Returns nothing: every number is a token."""
        del text
        return ""

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the numbers of all tokens except PAD and EOS."""
        return " ".join(str(token) for token in tokens if token not in (PAD, EOS))

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Returns each token id as a string."""
        return [str(token) for token in tokens]


class FixedLengthTranslator(Translator):
    """Translates every sentence into exactly `NUM_TOKENS` tokens."""

    def output_limits(self, source):
        """Returns the limit `NUM_TOKENS` for every sentence, and 0 for empty rows."""
        return np.where((source != PAD).any(axis=1), NUM_TOKENS, 0).astype(np.int32), NUM_TOKENS


def random_sources(count: int) -> list[list[int]]:
    """Returns random sentences. Each sentence ends with EOS."""
    rng = np.random.default_rng(0)
    lengths = np.clip(log_normal_lengths(rng, MEAN_LENGTH, count), MIN_LENGTH, MAX_LENGTH).astype(int)
    return [random_sentence(rng, length, VOCAB_SIZE).tolist() for length in lengths]


def untrained(config: ModelConfig) -> Trained:
    """Returns a model with random initial weights, as a `Trained`."""
    model = build_model(config, VOCAB_SIZE)
    experiment = ExperimentConfig(model=config, data=DataConfig(vocab_size=VOCAB_SIZE), decode=SEARCH)
    return Trained(experiment, NumberTokenizer(VOCAB_SIZE), model, init_params(model, seed=0), [0])


class OurTranslation:
    """Translates all sentences with our `Translator`. Each call returns the tokens of all outputs."""

    def __init__(self, trained: Trained, sources: Sequence[Sequence[int]]):
        self._translator = FixedLengthTranslator(trained.model, trained.params, trained.tokenizer, SEARCH)
        self._texts = [" ".join(map(str, source[:-1])) for source in sources]

    def __call__(self) -> list[list[int]]:
        return [[int(token) for token in line.split()] for line in self._translator(self._texts)]


class DecodingPeer:
    """A peer that translates with the weights of our model in a separate process.

    Exiting the context manager ends the process.

    Attributes:
      outputs: tokens of the peer's outputs.
      settings: the peer's fastest settings, as text.
      log_prob_difference: largest difference between the peer's and our log-probability of the same token, in
        nats.
    """

    def __init__(self, name: str, trained: Trained, sources: Sequence[Sequence[int]]):
        with tempfile.TemporaryDirectory() as folder:
            PEERS[name].write(trained, Path(folder))
            self.log_prob_difference = largest_difference(trained, PEERS[name], Path(folder))
            request = {
                "folder": folder,
                "sources": list(sources),
                "beam_size": SEARCH.beam_size,
                "length_penalty": SEARCH.length_penalty,
                "num_tokens": NUM_TOKENS,
            }
            self._process = PeerProcess(f"experiments.speed.{name}_decode", request)
        self.outputs, self.settings = (self._process.answer[key] for key in ("outputs", "settings"))
        assert all(len(output) == NUM_TOKENS for output in self.outputs)

    def turn(self, times: int) -> float:
        """Returns the seconds that it takes to translate all sentences `times` times."""
        return self._process.turn(times)

    def __enter__(self) -> "DecodingPeer":
        return self

    def __exit__(self, *_) -> None:
        self._process.__exit__()


def agreement(
    trained: Trained,
    sources: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    peer_outputs: Sequence[Sequence[int]],
) -> dict[str, float]:
    """Compares the outputs of a peer with ours.

    Returns:
      identical: share of the outputs that are identical.
      tied: share of the outputs that differ but have nearly the same probability in our model.
      score_difference: mean log-probability of the peer's outputs minus the mean log-probability of our
        outputs, in nats per sentence. Our model computes both.
    """
    texts = [source[:-1] for source in sources]
    log_probs = [[x[:-1].sum() for x in score(trained, texts, side)] for side in (outputs, peer_outputs)]
    differences = np.subtract(log_probs[1], log_probs[0])
    identical = np.array([a == b for a, b in zip(outputs, peer_outputs, strict=True)])
    return {
        "identical": float(identical.mean()),
        "tied": float((~identical & (np.abs(differences) < TIED)).mean()),
        "score_difference": float(differences.mean()),
    }


def benchmark(
    config: ModelConfig,
    peers: Sequence[str],
    repeats: int,
    turn_seconds: float,
    num_sentences: int | None = None,
) -> dict[str, Any]:
    """Times translation with a model. In each round, our code takes the first turn, then each peer takes one.

    Args:
      config: the model.
      peers: keys of `PEERS`.
      repeats: number of rounds.
      turn_seconds: approximate duration of a turn. A turn translates all sentences at least once.
      num_sentences: number of sentences; if None, `NUM_SENTENCES`.
    """
    num_sentences = num_sentences or NUM_SENTENCES
    sources, trained = random_sources(num_sentences), untrained(config)
    translate = OurTranslation(trained, sources)
    first_seconds = time_calls(translate)
    outputs = translate()
    assert all(len(output) == NUM_TOKENS for output in outputs)
    tokens = num_sentences * NUM_TOKENS
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(DecodingPeer(name, trained, sources)) for name in peers}
        turns = {"ours": functools.partial(time_calls, translate)}
        turns |= {name: peer.turn for name, peer in started.items()}
        times = {name: max(1, round(turn_seconds / turn(1))) for name, turn in turns.items()}
        speeds: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(repeats):
            for name, turn in turns.items():
                speeds[name].append(times[name] * tokens / turn(times[name]))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "tokens_per_second": medians["ours"],
        "spread": [min(speeds["ours"]), max(speeds["ours"])],
        "compile_seconds": first_seconds - tokens / medians["ours"],
        "peers": {name: medians[name] for name in peers},
        "against": {
            name: {
                "ratio": statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)),
                "spread": [min(speeds[name]), max(speeds[name])],
                "settings": peer.settings,
                **agreement(trained, sources, outputs, peer.outputs),
                "log_prob_difference": peer.log_prob_difference,
            }
            for name, peer in started.items()
        },
    }
