"""Figures of a model show any token and any value unchanged."""

import numpy as np
import pytest
from matplotlib.text import Text

from experiments import model_plots, plots
from tests.support.figures import pixels, texts

LATIN = ["$x_1$", "_a", "^b\\frac{1}{2}", "a_b", "%"]


def attention(source, target, heads=2):
    weights = np.full((heads, len(target), len(source)), 0.25, np.float32)
    return model_plots.attention_map(weights, source, target, "a $title$")


def test_labels_are_drawn_without_mathematical_markup():
    figure = attention(LATIN, LATIN)
    assert {*LATIN, "a $title$"} <= texts(figure)
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    plots.png(figure)


def test_control_characters_and_long_tokens_are_shown_in_a_bounded_label():
    figure = attention(["a\tb\n", "x" * 500], ["\u202e", "\0"])
    assert {"a<U+0009>b<U+000A>", "x" * 29 + "…", "<U+202E>", "<U+0000>"} <= texts(figure)
    assert max(pixels(figure).shape) < 2_000


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


def test_the_map_of_an_ablation_has_every_effect():
    cells = {"encoder.1.self": {"1": 0.01, "2": 0.5, "all": 3.0}, "positions": {"all": -0.2}}
    assert {"0.010", "0.500", "3.000", "-0.200", "head 2", "positions"} <= texts(
        model_plots.ablation_map(cells, "x")
    )


def test_the_scale_of_an_ablation_map_has_plain_numbers():
    figure = model_plots.ablation_map({"encoder.1.self": {"1": 0.02, "all": 0.5}}, "title")
    plots.png(figure)  # places the labels
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert "0.1" in labels
    assert not any("$" in label for label in labels)


@pytest.mark.parametrize("num_layers", [1, 4])
def test_the_biases_of_each_layer_have_a_panel_with_a_line_per_head(num_layers):
    biases = {f"layer {number}": np.array([[-1.0, 0, 1], [0, number, 0]]) for number in range(num_layers)}
    panels = [axes for axes in model_plots.position_bias(biases, "title").axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == list(biases)
    for axes, bias in zip(panels, biases.values(), strict=True):
        assert [line.get_xdata().tolist() for line in axes.lines] == [[-1, 0, 1]] * 2
        assert [line.get_ydata().tolist() for line in axes.lines] == bias.tolist()
