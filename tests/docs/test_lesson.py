"""The parts of the tour's chapters that need no trained model: a study's scores, sentences, and the tree of a search."""

import pytest

import lesson
from tests.support.tiny import random_params
from transformer.config import EOS, ModelConfig
from transformer.decoding.beam_steps import BeamStep
from transformer.model import build_model

A, B = 4, 5


class Letters:
    """A tokenizer whose tokens are letters."""

    def names(self, tokens):
        return [{A: "a", B: "b", EOS: "</s>"}[token] for token in tokens]


def test_it_is_an_animal_if_the_adjective_is_of_animals_and_a_place_otherwise():
    nouns = dict(lesson.pronoun_sentences())
    assert len(nouns) == 9 * 9 * 4 * 12
    assert nouns["the dog did not see the river because it was too hungry"] == "dog"
    assert nouns["the dog did not see the river because it was too steep"] == "river"
    assert {sentence.split()[lesson.IT] for sentence in nouns} == {"it"}


def test_the_scores_of_recurrence_are_those_of_the_split_test_in_the_table_of_the_study():
    lengths, scores = lesson.recurrence_scores()
    assert lengths == [8, 12, 16, 24, 32, 48]
    assert set(scores) == {"transformer", "fixed_context", "attention"}
    assert scores["fixed_context"][-1].tolist() == [49.57, 8.24]
    assert {values.shape for values in scores.values()} == {(6, 2)}


@pytest.fixture
def steps():
    """A search with two hypotheses, which returns "b a"."""
    first = BeamStep({(A,): -0.5, (B,): -1.0}, {}, {})
    second = BeamStep({(A, B): -0.7, (B, A): -1.1}, {(A, EOS): -2.0}, {})
    third = BeamStep({(A, B, A): -0.9}, {(B, A, EOS): -1.2, (A, EOS): -2.0}, {})
    return [first, second, third]


def test_the_first_finished_hypothesis_is_the_output(steps):
    assert lesson.best_output(steps) == (B, A, EOS)


def test_a_tree_has_a_node_for_each_hypothesis_and_a_thick_path_to_the_output(steps):
    (axes,) = lesson.beam_tree(steps, Letters()).axes
    assert [text.get_text().split("\n")[0] for text in axes.texts] == [
        "<s>",
        "a",
        "b",
        "b",
        "a",
        "</s>",
        "a",
        "</s>",
    ]
    assert [text.get_text() for text in axes.texts[1:3]] == ["a\n0.61", "b\n0.37"]
    assert [text.get_text() for text in axes.texts if "</s>" in text.get_text()] == [
        "</s>\nscore -2.00",
        "</s>\nscore -1.20",
    ]
    thick = [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 3]
    assert thick == [[[0, 0], [1, -1]], [[1, -1], [2, -1]], [[2, -1], [3, -1]]]


def test_a_layer_has_its_sub_layers_in_order_each_with_a_residual_connection():
    config = ModelConfig(num_layers=1, d_model=8, d_ff=8, num_heads=1)
    model = build_model(config, vocab_size=8)
    (axes,) = lesson.layer_diagram(model, random_params(model)).axes
    texts = [text.get_text() for text in axes.texts if text.get_bbox_patch()]
    names = ["self attention", "feed forward", "self attention", "cross attention", "feed forward"]
    assert texts == [text for name in names for text in (name, "add, then normalize")]
