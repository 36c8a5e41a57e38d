"""Figures show any text and any value unchanged."""

import io

import numpy as np
import pytest
from matplotlib import image
from matplotlib.text import Text

from experiments import plots

LATIN = ["$x_1$", "_a", "^b\\frac{1}{2}", "a_b", "%"]


def attention(source, target, heads=2, value=0.25):
    weights = np.full((heads, len(target), len(source)), value, np.float32)
    return plots.attention_map(weights, source, target, "a $title$")


def texts(figure):
    return {text.get_text().removeprefix("\N{WORD JOINER}") for text in figure.findobj(Text)}


def pixels(figure):
    return image.imread(io.BytesIO(plots.png(figure)))


def test_labels_are_drawn_without_mathematical_markup():
    figure = attention(LATIN, LATIN)
    assert {*LATIN, "a $title$"} <= texts(figure)
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    plots.png(figure)


def test_control_characters_and_long_tokens_are_shown_in_a_bounded_label():
    figure = attention(["a\tb\n", "x" * 500], ["\u202e", "\0"])
    assert {"a<U+0009>b<U+000A>", "x" * 29 + "…", "<U+202E>", "<U+0000>"} <= texts(figure)
    assert max(pixels(figure).shape) < 2_000


def test_a_character_without_a_font_is_named_once(capsys):
    font = plots.FAMILIES[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FAMILIES", font)
        assert plots.missing_glyphs("a 한국 zwölf ▁ 한\n") == ["국", "한"]
        plots.png(attention(["한국"], ["zwölf"]))
        assert capsys.readouterr().err == (
            "no installed font can draw 국 한; install one, such as fonts-noto-cjk or fonts-noto\n"
        )
    plots.png(attention(LATIN, ["zwölf"]))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("heads", "source", "target"),
    [
        (1, 1, 1),
        (1, 1, 60),
        (1, 60, 60),
        pytest.param(1, 1_000, 1_000, marks=pytest.mark.slow),
        pytest.param(64, 20, 20, marks=pytest.mark.slow),
        pytest.param(8, 1_000, 1_000, marks=pytest.mark.slow),
    ],
)
def test_figures_of_any_shape_have_a_bounded_size(heads, source, target):
    drawn = pixels(attention(["a"] * source, ["b"] * target, heads))
    assert max(drawn.shape) <= plots.MAX_INCHES * 120
    assert drawn.std() > 0


def test_every_variant_is_in_the_legend_but_has_no_bar_without_a_score():
    table = {"test": {"_x": [1.0, 2.0], "$a$": [], "b": [5.0]}, "long": {"_x": [1.0], "$a$": [3.0], "b": []}}
    (axes,) = plots.comparison(table, "bleu_lc", "_x $y$").axes
    labels = [text.get_text().removeprefix("\N{WORD JOINER}") for text in axes.get_legend().get_texts()]
    assert labels == ["_x", "$a$", "b"]
    assert len(axes.patches) == 4


def test_a_study_of_a_hundred_variants_is_drawn():
    table = {"test": {f"variant {number}": [float(number)] for number in range(100)}}
    assert max(pixels(plots.comparison(table, "bleu", "many")).shape) < 2_000


@pytest.mark.parametrize(("scores", "from_zero"), [([1.0, 2.0], True), ([-3.0, 2.0], False)])
def test_the_axis_begins_at_zero_unless_a_score_is_lower(scores, from_zero):
    (axes,) = plots.comparison({"test": {"a": scores}}, "gain", "title").axes
    bottom = axes.get_ylim()[0]
    assert (bottom == 0) == from_zero
    assert bottom <= min(scores)


def test_the_figure_by_length_shows_the_range_over_seeds_in_a_panel_per_split():
    curves = {
        ("a", "test"): {8: [100.0, 70.0], 16: [400.0]},
        ("_b", "test"): {16: [5.0]},
        ("a", "long"): {64: [1.0]},
    }
    first, second = plots.scores_by_length(curves, "perplexity", "title").axes
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
    labels = [text.get_text().removeprefix("\N{WORD JOINER}") for text in first.get_legend().get_texts()]
    assert labels == ["a", "_b"]


def test_equal_scores_whose_mean_is_rounded_are_drawn():
    scores = [0.1] * 3
    assert np.mean(scores) > max(scores)
    (axes,) = plots.scores_by_length({("a", "test"): {8: scores}}, "chrf", "title").axes
    _, _, (bars,) = axes.containers[0]
    assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [(0.1, 0.1)]


def test_records_without_a_loss_are_left_out_of_the_curve():
    records = [
        {"kind": "train", "step": 1, "loss": 3.0, "perplexity": 20.0},
        {"kind": "train", "step": 2, "skipped": 1},
        {"kind": "train", "step": 3, "loss": 800.0},
        {"kind": "validation", "step": 3, "loss": 1.0, "perplexity": 2.0},
    ]
    (axes,) = plots.learning_curve(records, "$title$").axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[1], [3]]


def test_the_map_of_an_ablation_has_every_effect():
    cells = {"encoder.1.self": {"1": 0.01, "2": 0.5, "all": 3.0}, "positions": {"all": -0.2}}
    assert {"0.010", "0.500", "3.000", "-0.200", "head 2", "positions"} <= texts(
        plots.ablation_map(cells, "x")
    )


def test_the_scale_of_an_ablation_map_has_plain_numbers():
    figure = plots.ablation_map({"encoder.1.self": {"1": 0.02, "all": 0.5}}, "title")
    plots.png(figure)  # places the labels
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert "0.1" in labels
    assert not any("$" in label for label in labels)
