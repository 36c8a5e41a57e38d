"""The steps of a search: the outputs are those of the translator, and every hypothesis was a candidate."""

import numpy as np
import pytest

from tests.support.translators import VOCAB_SIZE, model_and_params, tokenizer, translator
from transformer.config import EOS, DecodeConfig
from transformer.decoding.beam_steps import beam_steps

SETTINGS = {"max_extra_length": 5, "batch_tokens": 32, "max_source_length": 16}
BEAM_SIZE = 3


def steps_of(text, num_candidates=0, **settings):
    config = DecodeConfig(**{"beam_size": BEAM_SIZE} | SETTINGS | settings)
    source = tokenizer().encode(text)
    limit = len(source) + config.max_extra_length
    return beam_steps(*model_and_params(), source, config, limit, num_candidates)


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"beam_size": 1}, marks=pytest.mark.slow)], ids=["beam", "greedy"]
)
def test_the_best_output_is_that_of_the_translator(settings):
    translate = translator(**settings)
    for text in ("a man in a hat", "two dogs jump"):
        tokens, score = next(iter(steps_of(text, **settings)[-1].completed.items()))
        ((best, *_),) = translate.hypotheses([text])
        assert tokenizer().decode(tokens) == best.text
        assert score == pytest.approx(best.score, rel=1e-5)
        assert best.ended == (tokens[-1] == EOS)


def test_every_kept_or_finished_hypothesis_was_a_candidate_with_the_same_log_probability():
    steps = steps_of("a man in a hat", num_candidates=BEAM_SIZE * VOCAB_SIZE)
    finished = set()
    for number, step in enumerate(steps, start=1):
        assert {len(tokens) for tokens in step.candidates} == {number}
        assert list(step.candidates.values()) == sorted(step.candidates.values(), reverse=True)
        for tokens, log_prob in step.live.items():
            assert step.candidates[tokens] == pytest.approx(log_prob, abs=1e-4)
        assert set(step.completed) - finished <= set(step.candidates)
        finished |= set(step.completed)
        # The best extensions are chosen. A hypothesis that reached the limit is live and finished.
        chosen = {*step.live, *(tokens for tokens in step.completed if len(tokens) == number)}
        assert chosen == set(list(step.candidates)[: len(chosen)])
    first = np.exp(list(steps[0].candidates.values()))
    assert 0.9 < first.sum() <= 1 + 1e-5
