"""Times translating: our `Translator` and peers with the same weights, in turns.

128 sentences with the lengths of image captions, given as pieces. On every side beam search for exactly 24
pieces each, the encoder included.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.exporting import FORMATS, Format
from experiments.exporting.compare import difference, scores
from experiments.runs import Trained
from experiments.speed.peer import child, seconds
from experiments.speed.workload import log_normal
from transformer.config import (
    EOS,
    PAD,
    DataConfig,
    DecodeConfig,
    ExperimentConfig,
    TransformerConfig,
)
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.translator import Translator
from transformer.model import build, init_params

VOCAB, SENTENCES, PIECES = 8_000, 128, 24
MEAN, SHORTEST, LONGEST = 15, 5, 48  # pieces of a source sentence, EOS included
# Longer than it may be: no output ends.
SEARCH = DecodeConfig(beam_size=4, length_penalty=0.6, min_length=PIECES + 1)
# Log-probabilities, in nats, that two outputs may differ by and count as tied: of 24 pieces in float32.
TIED = 1e-3


class Numbers(Tokenizer):
    """A vocabulary whose text is the pieces' numbers."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.model, self.sha256 = b"", ""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*map(int, text.split()), EOS] for text in texts]

    def decode(self, pieces) -> str:
        return " ".join(str(piece) for piece in pieces if piece not in (PAD, EOS))

    def names(self, pieces) -> list[str]:
        return [str(piece) for piece in pieces]


class Exact(Translator):
    """Translates into `PIECES` pieces, however long the source is."""

    def search(self, source, *_):
        limits = np.where((source != PAD).any(axis=1), PIECES, 0).astype(np.int32)
        return self._search(self._params, source, limits, PIECES)


def sentences() -> list[list[int]]:
    """Random sentences, each closed by EOS."""
    rng = np.random.default_rng(0)
    lengths = np.clip(log_normal(rng, MEAN, SENTENCES), SHORTEST, LONGEST).astype(int)
    return [[*rng.integers(EOS + 2, VOCAB, length - 1).tolist(), EOS] for length in lengths]


def untrained(config: TransformerConfig) -> Trained:
    """A model with the weights before training, as if it came from a run."""
    model = build(config, VOCAB)
    described = ExperimentConfig(config, DataConfig(vocab_size=VOCAB), decode=SEARCH)
    return Trained(described, Numbers(VOCAB), model, init_params(model, seed=0), [0])


def ours(trained: Trained, sources: list[list[int]]) -> Callable[[], list[list[int]]]:
    """What translates all sentences once."""
    translator = Exact(trained.model, trained.params, trained.tokenizer, SEARCH)
    texts = [" ".join(map(str, source[:-1])) for source in sources]
    return lambda: [[int(piece) for piece in line.split()] for line in translator(texts)]


# Of each peer, the format that it reads.
PEERS: dict[str, Format] = {"ctranslate2": FORMATS["ctranslate2"], "transformers": FORMATS["marian"]}


class Peer(NamedTuple):
    """A peer in a process of its own.

    Attributes:
      ask: seconds of translating all sentences some times.
      answer: its outputs, and its settings in words.
      folder: of the exported model.
    """

    ask: Callable[[int], float]
    answer: dict
    folder: Path


@contextlib.contextmanager
def start(name: str, trained: Trained, sources: list[list[int]]) -> Iterator[Peer]:
    """Starts a peer with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        PEERS[name].write(trained, Path(folder))
        told = {
            "folder": folder,
            "sources": sources,
            "beam_size": SEARCH.beam_size,
            "alpha": SEARCH.length_penalty,
            "pieces": PIECES,
        }
        with child(f"experiments.speed.{name}_decode", told) as (ask, answer):
            assert all(len(line) == PIECES for line in answer["outputs"])
            yield Peer(ask, answer, Path(folder))


def agreement(trained: Trained, sources, own: list[list[int]], theirs: list[list[int]]) -> dict:
    """How far the outputs of a peer are ours.

    Returns:
      identical: share of the outputs.
      tied: share of the outputs that are not identical, but that our model finds as probable.
      score_difference: how much more probable it finds theirs, in nats a sentence, on average.
    """
    texts = [source[:-1] for source in sources]
    found = [[x[:-1].sum() for x in scores(trained, texts, outputs)] for outputs in (own, theirs)]
    differences = np.subtract(found[1], found[0])
    same = np.array([a == b for a, b in zip(own, theirs, strict=True)])
    return {
        "identical": float(same.mean()),
        "tied": float((~same & (np.abs(differences) < TIED)).mean()),
        "score_difference": float(differences.mean()),
    }


def benchmark(config: TransformerConfig, peers: list[str], repeats: int, turn: float) -> dict:
    """Times a shape: in each repeat first us, then each peer.

    Args:
      config: the model's sizes.
      peers: keys of `PEERS`.
      repeats: rounds.
      turn: seconds that a turn shall take, about; each translates all sentences at least once.
    """
    sources, trained = sentences(), untrained(config)
    translate = ours(trained, sources)
    first = seconds(translate)
    outputs = translate()
    assert all(len(line) == PIECES for line in outputs)
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(start(name, trained, sources)) for name in peers}
        turns = {"ours": lambda times: seconds(translate, times)}
        turns |= {name: peer.ask for name, peer in started.items()}
        times = {name: max(1, round(turn / ask(1))) for name, ask in turns.items()}
        speeds: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(repeats):
            for name, ask in turns.items():
                speeds[name].append(times[name] * SENTENCES * PIECES / ask(times[name]))
        agreed = {
            name: agreement(trained, sources, outputs, peer.answer["outputs"])
            | {"log_prob_difference": difference(trained, PEERS[name], peer.folder)}
            for name, peer in started.items()
        }
    medians = {name: statistics.median(taken) for name, taken in speeds.items()}
    return {
        "tokens_per_second": medians["ours"],
        "spread": [min(speeds["ours"]), max(speeds["ours"])],
        "compile_seconds": first - SENTENCES * PIECES / medians["ours"],
        "peers": {name: medians[name] for name in peers},
        "against": {
            name: {
                "ratio": statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)),
                "spread": [min(speeds[name]), max(speeds[name])],
                "settings": peer.answer["settings"],
                **agreed[name],
            }
            for name, peer in started.items()
        },
    }
