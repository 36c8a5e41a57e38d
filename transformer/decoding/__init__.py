"""Search for translations: over any step function (search.py), with a model, and from text to text.

`Translator` is the entry point. `BeamSearch` and `IndependentSearch` (greedy search, sampling) know no
model; `ModelSearch` runs them with one.
"""

from transformer.decoding.length_penalty import PENALTIES
from transformer.decoding.model_search import ModelSearch, ShrinkingSearch
from transformer.decoding.sampling import Sampler
from transformer.decoding.search import BeamSearch, Constraints, IndependentSearch, SearchResult
from transformer.decoding.translator import Hypothesis, Translator

__all__ = [
    "PENALTIES",
    "BeamSearch",
    "Constraints",
    "Hypothesis",
    "IndependentSearch",
    "ModelSearch",
    "Sampler",
    "SearchResult",
    "ShrinkingSearch",
    "Translator",
]
