"""Exporters, which write trained models in the formats of other toolkits."""

from experiments.formats.base import Format, export
from experiments.formats.comparison import largest_difference, score
from experiments.formats.to_ctranslate2 import CTranslate2
from experiments.formats.to_marian import Marian

__all__ = ["FORMATS", "CTranslate2", "Format", "Marian", "export", "largest_difference", "score"]

FORMATS: dict[str, Format] = {"ctranslate2": CTranslate2(), "marian": Marian()}
