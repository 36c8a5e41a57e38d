"""Strings in, strings out: order, neighbours, limits."""

import jax
import numpy as np
import pytest

from tests.tiny import tiny_config
from transformer.config import DecodeConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.translator import Translator
from transformer.model import build, init_params

TEXTS = [
    "a man in a red hat",
    "two dogs run",
    "",
    "a",
    "one two three four five six seven eight nine",
    "a man",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, "char", 24)


def translator(tokenizer, beam_size=3, batch_tokens=64, **changes):
    model = build(tiny_config(**changes), tokenizer.vocab_size)
    params = jax.tree.map(lambda x: 2 * x, init_params(model, seed=3))  # far from uniform
    config = DecodeConfig(beam_size=beam_size, max_extra=5, batch_tokens=batch_tokens)
    return Translator(model, params, tokenizer, config)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_order_and_neighbours_change_nothing(tokenizer, beam_size):
    translate = translator(tokenizer, beam_size)
    together = translate(TEXTS)
    assert len(together) == len(TEXTS)
    assert together[2] == ""
    assert len(set(together)) > 3
    assert translate(TEXTS[::-1]) == together[::-1]
    assert [translate([text])[0] for text in TEXTS] == together


def test_one_program_a_bucket(tokenizer):
    translate = translator(tokenizer, batch_tokens=32)
    translate([f"{'a man ' * words}{letter}" for words in (0, 1, 2, 3) for letter in "ahdrs"])
    assert translate._search._cache_size() == 2  # 16 and 32 pieces


def test_no_text_no_translation(tokenizer):
    assert translator(tokenizer)([]) == []
    assert translator(tokenizer)(["", ""]) == ["", ""]


def test_progress_reaches_the_number_of_texts(tokenizer):
    seen = []
    translator(tokenizer)(TEXTS[:2], seen.append)
    assert seen[-1] == 2


def test_output_is_at_most_input_plus_extra(tokenizer):
    translate = translator(tokenizer)
    source = np.array([[5, 6, 2, 0], [5, 6, 7, 2], [0, 0, 0, 0]], np.int32)
    lengths = (translate.search(source).tokens != 0).sum(axis=1)
    assert lengths[0] <= 3 + 5
    assert lengths[1] <= 4 + 5
    assert lengths[2] == 0


def test_a_sentence_past_the_positions_is_refused(tokenizer):
    translate = translator(tokenizer, positions="learned", max_positions=12)
    assert len(translate(["a man"])) == 1
    with pytest.raises(UserError, match="line 2 has 20 pieces; the model's positions end at 12"):
        translate(["a", "a man in a red hat"])
