"""Figures of a study show every variant and every score."""

import numpy as np
import pytest

from experiments.study import score_plots
from tests.support.figures import legend_names, pixels


def test_every_variant_is_in_the_legend_but_has_no_bar_without_a_score():
    table = {"test": {"_x": [1.0, 2.0], "$a$": [], "b": [5.0]}, "long": {"_x": [1.0], "$a$": [3.0], "b": []}}
    (axes,) = score_plots.comparison(table, "bleu_lc", "_x $y$").axes
    assert legend_names(axes) == ["_x", "$a$", "b"]
    assert len(axes.patches) == 4


def test_a_study_of_a_hundred_variants_is_drawn():
    table = {"test": {f"variant {number}": [float(number)] for number in range(100)}}
    assert max(pixels(score_plots.comparison(table, "bleu", "many")).shape) < 2_000


@pytest.mark.parametrize(("scores", "from_zero"), [([1.0, 2.0], True), ([-3.0, 2.0], False)])
def test_the_axis_begins_at_zero_unless_a_score_is_lower(scores, from_zero):
    (axes,) = score_plots.comparison({"test": {"a": scores}}, "gain", "title").axes
    bottom = axes.get_ylim()[0]
    assert (bottom == 0) == from_zero
    assert bottom <= min(scores)


def test_the_figure_by_length_shows_the_range_over_seeds_in_a_panel_per_split():
    curves = {
        ("a", "test"): {8: [100.0, 70.0], 16: [400.0]},
        ("_b", "test"): {16: [5.0]},
        ("a", "long"): {64: [1.0]},
    }
    first, second = score_plots.scores_by_length(curves, "perplexity", "title").axes
    assert [axes.get_title() for axes in (first, second)] == ["test", "long"]
    assert [[text.get_text() for text in axes.get_xticklabels()] for axes in (first, second)] == [
        ["8", "16"],
        ["64"],
    ]
    mean, _, (bars,) = first.containers[0]
    assert list(mean.get_ydata()) == [85, 400]
    assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [(70, 100), (400, 400)]
    assert len({axes.get_ylim() for axes in (first, second)}) == 1
    assert first.get_ylim()[0] == 0
    assert legend_names(first) == ["a", "_b"]


def test_equal_scores_whose_mean_is_rounded_are_drawn():
    scores = [0.1] * 3
    assert np.mean(scores) > max(scores)
    (axes,) = score_plots.scores_by_length({("a", "test"): {8: scores}}, "chrf", "title").axes
    _, _, (bars,) = axes.containers[0]
    assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [(0.1, 0.1)]
