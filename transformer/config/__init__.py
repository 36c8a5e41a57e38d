"""Experiment configuration. Defaults are the paper's base model.

`option` declares each field: its default, the values that the paper reports for it, whether it affects the
result, and when it is read. `fidelity`, `result_hash` and the commands use these declarations. This module
rejects values that are invalid in every config. Names, such as that of a position scheme, are checked
elsewhere, against the dict that defines them.
"""

from transformer.config.data import BOS, EOS, PAD, UNK, DataConfig
from transformer.config.decode import DecodeConfig
from transformer.config.experiment import (
    ExperimentConfig,
    check_key,
    difference,
    flatten,
    from_dict,
    result_hash,
    to_dict,
)
from transformer.config.fields import (
    Declaration,
    Rule,
    Section,
    UserError,
    build_section,
    choose,
    declarations,
    from_text,
    option,
    unknown_key,
)
from transformer.config.model import ModelConfig
from transformer.config.optimizer import OptimizerConfig, paper_peak
from transformer.config.train import TrainConfig

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "UNK",
    "DataConfig",
    "Declaration",
    "DecodeConfig",
    "ExperimentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Rule",
    "Section",
    "TrainConfig",
    "UserError",
    "build_section",
    "check_key",
    "choose",
    "declarations",
    "difference",
    "flatten",
    "from_dict",
    "from_text",
    "option",
    "paper_peak",
    "result_hash",
    "to_dict",
    "unknown_key",
]
