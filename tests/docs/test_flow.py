"""The animation of the tour, drawn from given arrays: its steps, its lines, its cells and its buttons."""

import html
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import flow
from tests.support.chromium import needs_chromium, run_script

SOURCE, READ, PREDICTED = ["a", "<b>&"], ["<s>", "x"], ["x", "</s>"]
ENCODER_WEIGHTS = np.array([[[0.75, 0.25], [0.99, 0.01]]])
DECODER_WEIGHTS = np.array([[[1.0, 0.0], [0.5, 0.5]]])
CROSS = np.array([[0.6, 0.4], [0.02, 0.98]])
CAPTIONS = [
    "the source tokens",
    "embeddings and positions",
    "encoder, layer 1: every token attends to every token",
    "decoder, step 1: reads <s>, attends to the source, predicts x",
    "decoder, step 2: reads x, attends to the source, predicts </s>",
]


def side(tokens, weights):
    """A stack of one layer. It maps the embeddings, which are equal, to their opposites."""
    embeddings = np.tile([2.0, -1.0, 0, 0, 0, 0, 0, 0], (len(tokens), 1))
    return flow.Side(tokens, [embeddings, -embeddings], weights)


@pytest.fixture(scope="module")
def page():
    """An animation of two source tokens and two target tokens."""
    return flow.drawing(side(SOURCE, ENCODER_WEIGHTS), side(READ, DECODER_WEIGHTS), PREDICTED, CROSS)


@pytest.fixture(scope="module")
def svg(page):
    """The drawing."""
    return ElementTree.fromstring(re.search("<svg.*</svg>", page, re.DOTALL)[0])


@pytest.fixture(scope="module")
def frames(svg):
    """The parts that each step adds to the drawing."""
    return svg.findall("g")


def opacities(frame, kind):
    return [float(line.get("opacity")) for line in frame.findall(f"line[@class='{kind}']")]


def test_each_step_has_a_caption(page, frames):
    captions = json.loads(html.unescape(re.search('data-captions="(.*?)"', page)[1]))
    assert captions == CAPTIONS
    assert len(frames) == len(CAPTIONS)


def test_each_step_shows_its_tokens_as_text(frames):
    texts = [[text.text for text in frame.findall("text")] for frame in frames]
    assert texts == [SOURCE, [], [], ["<s>", "x"], ["x", "</s>"]]


def test_each_row_has_a_name_beside_its_stack(svg, frames):
    names = {text.text: float(text.get("x")) for text in svg.findall("text")}
    left, right = (float(frame.find("text").get("x")) for frame in (frames[0], frames[-1]))
    assert list(names) == [
        *("source", "embedding", "+ position", "encoder", "layer 1"),
        *("reads", "decoder", "predicts"),
    ]
    assert names["encoder"] == names["source"] < left < right < names["decoder"] == names["predicts"]


def test_lines_and_cells_have_different_colors(page):
    cells = set(re.findall(r'fill="(#\w+)"', page))
    lines = re.findall(r"\.flow line\S* { stroke: (#\w+);", page)
    assert len(cells) == len(lines) == 2  # positive and negative values; self- and cross-attention
    assert len({*cells, *lines}) == 4


def test_a_line_is_as_opaque_as_its_weight_and_a_weak_weight_has_none(frames):
    assert [opacities(frame, "") for frame in frames] == [[], [], [0.75, 0.25, 0.99], [1.0], [0.5, 0.5]]
    assert [opacities(frame, "cross") for frame in frames] == [[], [], [], [0.6, 0.4], [0.98]]


def test_a_cell_shows_the_sign_and_the_relative_size_of_its_value(frames):
    embeddings, layer = ([cell.attrib for cell in frame.findall("rect")] for frame in frames[1:3])
    assert len(embeddings) == len(layer) == len(SOURCE) * flow.NUM_CELLS
    for cells, colors in ((embeddings, [flow.BLUE, flow.ORANGE]), (layer, [flow.ORANGE, flow.BLUE])):
        assert [cell["fill"] for cell in cells[:2]] == colors
        assert [float(cell["fill-opacity"]) for cell in cells[:3]] == [1, 0.5, 0]


STEPS = """
const root = document.querySelector(".flow"), button = name => root.querySelector(`[data-do=${name}]`);
const state = () => [root.querySelector("output").textContent,
  [...root.querySelectorAll("g")].filter(g => g.style.visibility !== "hidden").length];
result.hidden = root.querySelector("[role=group]").hidden;
result.states = [state()];
for (const name of ["back", "next", "next", "play"]) { button(name).click(); result.states.push(state()); }
result.playing = button("play").textContent;
button("play").click(); result.stopped = button("play").textContent;
"""


@needs_chromium
def test_the_buttons_step_through_the_animation(page, tmp_path):
    result = run_script(f"<body>{page}</body>", STEPS, tmp_path)
    assert not result["hidden"]
    shown = [4, 5, 1, 2]  # after Back, Next, Next and Play
    captions = [f"{number} of 5: {CAPTIONS[number - 1]}" for number in shown]
    assert result["states"] == [["all steps", 5], *map(list, zip(captions, shown, strict=True))]
    assert (result["playing"], result["stopped"]) == ("Pause", "Play")
