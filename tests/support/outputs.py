"""Invented outputs of models, for tests of metrics."""

from transformer.evaluation.metrics import Outputs

# Results of teacher forcing on `NUM_TOKENS` tokens.
SUMMARY = {"loss": 2.5, "nll": 2.0, "perplexity": 7.389, "perplexity_per_character": 1.5, "accuracy": 0.5}
NUM_TOKENS = 30


def outputs_of(hypotheses, references, sources=None, ended=None, language="de") -> Outputs:
    """Outputs that have ended, with sources "source 0", "source 1", ..., unless given otherwise."""
    sources = [f"source {i}" for i in range(len(references))] if sources is None else sources
    ended = [True] * len(hypotheses) if ended is None else ended
    return Outputs(sources, hypotheses, references, language, ended, SUMMARY, NUM_TOKENS)
