"""Trained weights in the formats of other toolkits."""

from experiments.exporting.format import Format
from experiments.exporting.to_ctranslate2 import CTRANSLATE2
from experiments.exporting.to_marian import MARIAN

FORMATS: dict[str, Format] = {"ctranslate2": CTRANSLATE2, "marian": MARIAN}
