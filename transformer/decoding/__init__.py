"""Search for translations.

`Translator` is the entry point and maps text to text; `Scorer` scores given translations. `BeamSearch` and
`IndependentSearch` (greedy search, sampling) work with any function that predicts the next token;
`ModelSearch` runs them with a model.
"""

from transformer.decoding.length_penalty import PENALTIES
from transformer.decoding.model_search import ModelSearch, ShrinkingSearch
from transformer.decoding.sampling import Sampler
from transformer.decoding.scorer import Scorer
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
    "Scorer",
    "SearchResult",
    "ShrinkingSearch",
    "Translator",
]
