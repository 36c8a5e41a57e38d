"""Writes synthetic parallel text of any size, for measurements. Word frequencies resemble real text.

    python -m tests.data.synthesise FOLDER PAIRS [VALIDATION_PAIRS]

Each sentence has about 25 words. The lengths are log-normal and similar on both sides of a pair. Word k of 500,000
has a frequency proportional to 1 / (k + 2.7) (Zipf and Mandelbrot), and frequent words are shorter. Writes
train.en, train.de, valid.en and valid.de.
"""

import sys
from pathlib import Path

import numpy as np

WORDS = 500_000
SYLLABLES = [onset + vowel for onset in [*"bdfghklmnprstwz", "sch", "st"] for vowel in [*"aeiouä", "ei"]]


def vocabulary(rng: np.random.Generator) -> np.ndarray:
    """Makes the words, in order of decreasing frequency."""
    lengths = np.clip(1 + rng.poisson(np.log10(np.arange(1, WORDS + 1)) * 0.35), 1, 7)
    parts = rng.choice(SYLLABLES, (WORDS, 7))
    return np.array(["".join(part[:length]) for part, length in zip(parts, lengths, strict=True)], object)


def write(folder: Path, name: str, pairs: int, seed: int) -> None:
    """Writes `name`.en and `name`.de in blocks of 100,000 lines."""
    rng = np.random.default_rng(seed)
    words = {
        language: vocabulary(np.random.default_rng(number)) for number, language in enumerate(("en", "de"))
    }
    cumulative = np.cumsum(1 / (np.arange(WORDS) + 2.7))
    with open(folder / f"{name}.en", "w") as english, open(folder / f"{name}.de", "w") as german:
        for first in range(0, pairs, 100_000):
            count = min(100_000, pairs - first)
            lengths = np.clip(rng.lognormal(3.05, 0.6, count), 1, 150).astype(int)
            for file, language in ((english, "en"), (german, "de")):
                num_words = np.maximum(1, lengths + rng.integers(-3, 4, count))
                drawn = np.searchsorted(cumulative, rng.random(num_words.sum()) * cumulative[-1])
                texts = np.split(words[language][drawn], np.cumsum(num_words)[:-1])
                file.writelines(" ".join(text) + ".\n" for text in texts)


if __name__ == "__main__":
    target, size, *held_out = sys.argv[1:]
    write(Path(target), "train", int(size), seed=1)
    write(Path(target), "valid", int(held_out[0]) if held_out else 3_000, seed=2)
