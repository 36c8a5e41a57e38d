"""Evaluation of trained models: metrics, significance, attention weights.

`METRICS` is the registry of metrics. Tables, JSON files, comparisons and reports show its entries.
"""

from transformer.evaluation.attention import AttentionWeights, attention_weights
from transformer.evaluation.metrics import METRICS, Metric, Outputs, by_length, compute_scores, signatures
from transformer.evaluation.significance import Comparison, compare

__all__ = [
    "METRICS",
    "AttentionWeights",
    "Comparison",
    "Metric",
    "Outputs",
    "attention_weights",
    "by_length",
    "compare",
    "compute_scores",
    "signatures",
]
