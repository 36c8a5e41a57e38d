"""Draws: their frequencies, what is kept of a distribution, and what they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.test_search import random_table, table_step
from tests.tiny import tiny_config
from transformer.config import EOS, DecodeConfig
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.pieces import IMPOSSIBLE
from transformer.decoding.sampling import keep_top_k, keep_top_p, sampler
from transformer.decoding.search import ChoosingSearch, Rules, run
from transformer.decoding.translator import Translator
from transformer.model import build, init_params

TABLE = np.log([0.5, 0.25, 0.15, 0.07, 0.03])
DRAWS = 20_000
TEXTS = ["a man in a red hat", "two dogs run", "", "a", "one two three four five six seven", "a man"]


def frequencies(**options):
    """How often each piece of `TABLE` is drawn, as the first one of many sentences."""
    choose = sampler(jax.random.key(7), jnp.arange(DRAWS), **options)
    pieces = choose(jnp.broadcast_to(jnp.float32(TABLE), (DRAWS, 1, 5)), jnp.int32(0))
    return np.bincount(np.ravel(pieces), minlength=5) / DRAWS


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, softmax(TABLE)),
        ({"temperature": 0.5}, softmax(2 * TABLE)),
        ({"k": 2}, np.array([2 / 3, 1 / 3, 0, 0, 0])),
        ({"p": 0.76}, np.array([0.5, 0.25, 0.15, 0, 0]) / 0.9),
        ({"temperature": 0.5, "k": 3, "p": 0.9}, np.array([4 / 5, 1 / 5, 0, 0, 0])),
    ],
    ids=["as it is", "colder", "top-k", "nucleus", "all three"],
)
def test_frequencies_are_probabilities(options, expected):
    """Within four standard deviations of 20,000 draws. The nucleus is that of the colder distribution."""
    found = frequencies(**options)
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / DRAWS))


def test_places_and_hypotheses_are_drawn_by_themselves():
    """As often alike as two draws are: sum p^2, within four standard deviations."""
    choose = sampler(jax.random.key(7), jnp.arange(DRAWS))
    logits = jnp.broadcast_to(jnp.float32(TABLE), (DRAWS, 2, 5))
    first, second = (np.asarray(choose(logits, jnp.int32(index))) for index in (0, 1))
    same = (softmax(TABLE) ** 2).sum()
    for one, other in (
        (first[:, 0], first[:, 1]),
        (first[:, 0], second[:, 0]),
        (first[1:, 0], first[:-1, 0]),
    ):
        assert abs(np.mean(one == other) - same) < 4 * np.sqrt(same * (1 - same) / DRAWS)


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.3, [0]),
        (0.39, [0]),
        (0.41, [0, 2, 3]),  # one of two equal ones would do; both are kept
        (0.79, [0, 2, 3]),
        (0.81, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_the_nucleus_by_hand(p, kept):
    """Of 0.4, 0.15, 0.2, 0.2, 0.05 in this order: sums 0.4, 0.6, 0.8, 0.95, 1 from the most probable on."""
    logits = jnp.log(jnp.array([[0.4, 0.15, 0.2, 0.2, 0.05]]))
    found = keep_top_p(logits, p)
    assert np.flatnonzero(found[0] > IMPOSSIBLE).tolist() == kept
    np.testing.assert_array_equal(found[0, jnp.array(kept)], logits[0, jnp.array(kept)])


@pytest.mark.parametrize(("k", "kept"), [(1, [0]), (2, [0, 2, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])])  # fmt: skip
def test_the_most_probable_by_hand(k, kept):
    found = keep_top_k(jnp.log(jnp.array([[0.4, 0.15, 0.2, 0.2, 0.05]])), k)
    assert np.flatnonzero(found[0] > IMPOSSIBLE).tolist() == kept


@pytest.mark.parametrize("options", [{"k": 1}, {"p": 1e-6}, {"temperature": 1e-6}])
def test_what_leaves_one_piece_is_greedy(options):
    table = random_table(4, rows=5)
    rules = Rules(jnp.array([6, 5, 4, 6, 1]))

    def search(**choice):
        return run(ChoosingSearch(**choice), table_step(table), jnp.zeros((5, 1), jnp.int32), rules, 6)

    drawn, greedy = search(choose=sampler(jax.random.key(0), jnp.arange(5), **options)), search()
    np.testing.assert_array_equal(drawn.tokens, greedy.tokens)
    np.testing.assert_allclose(drawn.score, greedy.score, rtol=1e-6)


def test_the_score_of_a_draw_is_its_log_probability():
    """That of the model, whatever the temperature."""
    table = random_table(4, rows=2)
    log_probs = np.asarray(jax.nn.log_softmax(table), np.float64)
    choose = sampler(jax.random.key(1), jnp.arange(2), temperature=3.0)
    step, state = table_step(table), jnp.zeros((2, 3), jnp.int32)
    found = run(ChoosingSearch(3, choose=choose), step, state, Rules(jnp.array([6, 4])), 6)
    for row in range(2):
        for place in range(3):
            before, last, total = 0, 1, 0.0
            for piece in filter(None, map(int, found.tokens[row, place])):
                total += log_probs[row, before, last, piece]
                before, last = last, piece
            assert float(found.score[row, place]) == pytest.approx(total, rel=1e-5)
            assert bool(found.ended[row, place]) == (last == EOS)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, "char", 24)


def sampling(tokenizer, n_best=1, batch_tokens=64, **changes):
    model = build(tiny_config(), tokenizer.vocab_size)
    config = DecodeConfig(sampling=True, max_extra=3, min_length=6, batch_tokens=batch_tokens, **changes)
    return Translator(model, init_params(model, seed=3), tokenizer, config, n_best)


def test_a_seed_decides_the_draws_and_neighbours_do_not(tokenizer):
    """Rounding differs by batch; none of these draws is that close."""
    translate = sampling(tokenizer)
    together = translate(TEXTS)
    assert sampling(tokenizer)(TEXTS) == together
    assert len(set(together)) == len(TEXTS)
    other = sampling(tokenizer, seed=1)(TEXTS)
    assert all(one != two for one, two in zip(together, other, strict=True) if one)
    for number, text in enumerate(TEXTS):
        assert translate.hypotheses([text], first=number)[0][0].text == together[number]
    assert translate(TEXTS[1:2]) != together[1:2]  # another number, other draws
    assert sampling(tokenizer, batch_tokens=512)(TEXTS) == together


def test_parts_of_a_text_that_are_alike_are_drawn_by_themselves(tokenizer, monkeypatch):
    translate, drawn = sampling(tokenizer, max_source=8), []
    search = translate.search

    def watched(source, *rest):
        found = search(source, *rest)
        drawn.extend(found.tokens[source.any(axis=1), 0].tolist())
        return found

    monkeypatch.setattr(translate, "search", watched)
    text = "a man a man"
    together = translate([text])
    assert len(drawn) == 2
    assert drawn[0] != drawn[1]
    assert sampling(tokenizer, max_source=8, batch_tokens=16)([text]) == together


def test_samples_of_a_text_differ(tokenizer):
    found = sampling(tokenizer, n_best=4).hypotheses(TEXTS)
    assert [len({one.text for one in own}) for own in found] == [4, 4, 1, 4, 4, 4]
    assert [own[0].text for own in found] == sampling(tokenizer)(TEXTS)
