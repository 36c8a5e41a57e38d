"""Data: from the name of a data set to batches of tokens.

`Corpus` prepares a data set (`builders`) and its vocabulary (`Tokenizer`) and stores the tokens of each
split on disk. A plan (`PackedPlan`, `BucketedPlan`) assigns the training pairs to batches; `TrainingBatches`
assembles them and `serve` does so ahead of the training step. Evaluation and search sort sentences by
length (`length_batches`).
"""

import importlib
from typing import Any

# The module that defines each public name. A module is imported at the first use of one of its names, since
# some of them import TFDS or Grain.
_MODULES = {
    "BUILDERS": "builders",
    "BucketedPlan": "bucketing",
    "Corpus": "corpus",
    "LengthBatch": "batching",
    "LogLines": "progress",
    "Options": "options",
    "PackedPlan": "packing",
    "PairBuilder": "pair_builder",
    "Plan": "plan",
    "Progress": "progress",
    "Side": "splits",
    "Split": "splits",
    "Tokenizer": "tokenizer",
    "TrainingBatches": "pipeline",
    "assemble": "batching",
    "evaluation_batches": "batching",
    "length_batches": "batching",
    "options_type": "builders",
    "pad_rows": "batching",
    "resolve_options": "builders",
    "serve": "pipeline",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
