"""Data: from the name of a data set to batches of tokens.

`corpus.Corpus` prepares a data set (`builders.BUILDERS`) and its vocabulary, and stores the tokens of each
split on disk. This file does not import `corpus` and `builders`, because they import TFDS. A plan
(`PackedPlan`, `BucketedPlan`) assigns the training pairs to batches, which `pipeline` assembles ahead of the
training step. Evaluation and search sort sentences by length (`length_batches`).
"""

from transformer.data.batching import LengthBatch, assemble, evaluation_batches, length_batches, pad_rows
from transformer.data.bucketing import BucketedPlan
from transformer.data.packing import PackedPlan
from transformer.data.plan import Plan
from transformer.data.splits import Side, Split
from transformer.data.tokenizer import Tokenizer

__all__ = [
    "BucketedPlan",
    "LengthBatch",
    "PackedPlan",
    "Plan",
    "Side",
    "Split",
    "Tokenizer",
    "assemble",
    "evaluation_batches",
    "length_batches",
    "pad_rows",
]
