"""The explorer: its data, its size, escaping, and every control in headless Chromium."""

import base64
import shutil

import numpy as np
import pytest

from experiments.attention_views import AttentionView, ViewedSentence
from experiments.explorer import encode, sentence_data
from experiments.pages import PALETTE, render
from tests.support.chromium import needs_chromium, run_script
from tests.support.commands import call, refuse

SENTENCES = ("one; two", "three hundred and four")
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "שלום",
    "漢字",
    "مرحبا",
    "a&b",
]


def decode(coded):
    """Returns the array that `encode` stored."""
    codes = np.frombuffer(base64.b64decode(coded["data"]), "<u2").reshape(coded["shape"])
    return coded["low"] + codes * (coded["high"] - coded["low"]) / 65535


def large_data(num_sentences=3, length=30, layers=6, heads=8):
    """The data of a page with random weights and tokens of any script."""
    rng = np.random.default_rng(0)
    names = [HOSTILE[i % len(HOSTILE)] + str(i) for i in range(length)]

    def sentence():
        views = [
            AttentionView(
                *(kind, kind, names, names, "query", "key"),
                rng.dirichlet(np.full(length, 0.1), (layers, heads, length)),
                np.ones((length, length), bool),
            )
            for kind in ("encoder", "decoder", "cross")
        ]
        viewed = ViewedSentence(HOSTILE[0], None, [], [], views)
        candidates = [{"tokens": names, "probability": 0.5, "logProb": -0.7, "fate": "kept"}] * 8
        completed = [{"tokens": names, "score": -0.5}] * 4
        steps = [{"candidates": candidates, "completed": completed}] * length
        return sentence_data(None, viewed) | {"output": HOSTILE[1], "steps": steps}

    table = rng.normal(size=(64, 512))
    axes = {"title": "table", "rowAxis": "position", "columnAxis": "channel", "firstRow": 0, "firstColumn": 0}
    near = [{"name": name, "nearest": [[name, 0.5]] * 8} for name in names]
    return {
        "run": HOSTILE[0],
        "summary": HOSTILE[1],
        "colors": PALETTE,
        "sentences": [sentence() for _ in range(num_sentences)],
        "positions": [axes | {"values": encode(table)}],
        "neighbors": [{"title": "embeddings", "tokens": near}],
    }


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """The path of a page about the trained run and two sentences."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "run")
    flags = [f"--sentence={sentence}" for sentence in SENTENCES]
    done = call("visualize", f"--workdir={run}", *flags, "--page")
    path = run / "figures" / "explorer.html"
    assert done.stdout.splitlines()[2:] == [str(path)]
    return path


def weights_of(trained, tmp_path):
    """The attention weights that `translate --attention` writes, by sentence and kind."""
    path = tmp_path / "attention.npz"
    call(
        *("translate", f"--workdir={trained}", f"--attention={path}"),
        stdin="".join(f"{sentence}\n" for sentence in SENTENCES).encode(),
    )
    with np.load(path) as arrays:
        return [
            {kind: arrays[f"{number}/{kind}"] for kind in ("encoder", "decoder", "cross")}
            for number in range(1, len(SENTENCES) + 1)
        ]


@pytest.mark.parametrize("values", [np.array([0.0, 0.5, 1.0, 1 / 3]), np.array([-7.5, 0.0, 300.25])])
def test_encoded_values_are_restored_to_16_bits(values):
    width = max(1, values.max()) - min(0, values.min())
    np.testing.assert_allclose(decode(encode(values)), values, atol=width / 131_000, rtol=0)


def test_three_sentences_of_30_tokens_with_6_layers_and_8_heads_take_less_than_3_megabytes():
    assert len(render("explorer.html", title="run", data=large_data()).encode()) < 3e6


def test_a_page_that_would_be_too_large_is_refused(page, monkeypatch):
    monkeypatch.setattr("experiments.explorer.MAX_MEGABYTES", 0.01)
    message = refuse("visualize", f"--workdir={page.parent.parent}", f"--sentence={SENTENCES[0]}", "--page")
    assert message.startswith("the page has ")
    assert message.endswith(" give fewer or shorter sentences")


# Reads every drawn line of every sentence, kind of attention and layer; then uses every control.
SCRIPT = """
const find = selector => [...document.querySelectorAll(selector)];
const change = (name, value) => { id(name).value = value; id(name).dispatchEvent(new Event("change")); };
const key = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const lines = () => find("#lines path").map(path => Object.values({...path.dataset}).map(Number));
const steps = () => find("#candidates tr").map(row => [...row.cells].map(cell => cell.textContent.trim()));
const numSentences = id("sentence").options.length, numViews = id("view").options.length;
result.first = id("view").selectedOptions[0].text;
result.drawn = [];
for (let s = 0; s < numSentences; s++) {
  change("sentence", s);
  result.drawn.push([]);
  for (let v = 0; v < numViews; v++) { change("view", v); result.drawn[s].push([]);
    for (let l = 0; l < numLayers(); l++) { change("layer", l); result.drawn[s][v].push(lines()); } }
}
change("sentence", 0); change("view", numViews - 1); change("layer", 0);
result.output = id("output").textContent;

const boxes = find("#heads input");
boxes[0].click(); result.without = [...new Set(lines().map(line => line[0]))];
id("all").click(); result.all = [...new Set(lines().map(line => line[0]))];
id("next-head").click(); result.single = [...selected]; id("next-head").click(); result.next = [...selected];
find("#heads input").forEach(box => box.checked && box.click()); result.none = id("readout").textContent;
id("all").click();
change("combine", "mean"); result.mean = lines().length; result.meanWeight = weight("mean", 0, 0);
result.meanByHand = find("#heads input").reduce((sum, _, head) => sum + layerWeight(0, head, 0, 0), 0) / boxes.length;
change("combine", "each");

const tokens = find(".token[data-side=query]");
tokens[1].dispatchEvent(new Event("mouseenter")); result.hovered = [...new Set(lines().map(line => line[1]))];
result.pressed = [tokens[1].getAttribute("aria-pressed")];
result.readout = id("readout").textContent;
tokens[1].dispatchEvent(new Event("mouseleave")); result.left = [...new Set(lines().map(line => line[1]))].length;
tokens[0].focus(); key(tokens[0], "ArrowDown"); result.focused = document.activeElement.dataset.index;
document.activeElement.click(); document.activeElement.blur(); result.pinned = [...new Set(lines().map(line => line[1]))];
result.pressed.push(tokens[1].getAttribute("aria-pressed"));
key(tokens[1], "Escape"); result.freed = [...new Set(lines().map(line => line[1]))].length;
result.tabStops = find(".token").filter(token => token.tabIndex === 0).length;

change("form", "matrix");
const canvases = find("#matrices canvas");
result.matrices = canvases.length;
for (const name of ["ArrowRight", "ArrowRight", "ArrowDown"]) key(canvases[1], name);
result.cell = id("readout").textContent.split("\\n")[0]; result.expectedCell = format(weight(1, 1, 1));
const place = canvases[0].layout, cell = place.cell, box = canvases[0].getBoundingClientRect();
canvases[0].dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + place.left + cell / 2, clientY: box.top + place.top + cell / 2}));
result.pointed = id("readout").textContent.split("\\n")[0]; result.expectedPointed = format(weight(0, 0, 0));
canvases[0].dispatchEvent(new Event("pointerleave"));
const scale = devicePixelRatio, image = canvases[0].getContext("2d").getImageData(0, 0, canvases[0].width, canvases[0].height);
const middle = (start, index) => Math.floor((start + (index + .5) * cell) * scale);
const alpha = (row, column) => image.data[4 * (middle(place.top, row) * image.width + middle(place.left, column)) + 3] / 255;
result.shades = view.queries.flatMap((_, row) => view.keys.map((_, column) => alpha(row, column) - weight(0, row, column)));
change("layer", numLayers() > 1 ? "mean" : 0); change("form", "lines");

result.step = [steps()]; id("next").click(); result.step.push(steps()); id("previous").click(); result.step.push(steps());
id("step").value = id("step").max; id("step").dispatchEvent(new Event("input")); result.last = id("next").disabled;
result.finished = find("#completed tr:first-child bdi").map(token => token.textContent);

result.positions = [...id("position-view").options].map((option, i) => { change("position-view", i);
  const canvas = document.querySelector("#position-matrix canvas"); key(canvas, "ArrowDown"); key(canvas, "ArrowRight");
  return id("position-readout").textContent; });
result.tables = [...id("table").options].map((option, i) => { change("table", i); return option.text; });
change("token", 1); result.neighbors = find("#nearest tr").map(row => row.cells[0].textContent);

result.unlabeled = find("select, input").filter(control => !control.labels.length).length;
result.unreachable = find("select, button:not(.token), input").filter(control => control.tabIndex < 0).length;
result.external = find("[src], link[href]").length; result.images = document.images.length;
"""


@needs_chromium
def test_every_control_works_and_the_drawn_weights_are_those_of_translate(page, trained, tmp_path):
    result = run_script(page.read_text(), SCRIPT, tmp_path)
    for drawn, weights in zip(result["drawn"], weights_of(trained, tmp_path), strict=True):
        for layers, expected in zip(drawn, weights.values(), strict=True):
            for layer, lines in enumerate(layers):
                values = {tuple(map(int, place)): value for *place, value in lines}
                # A line stands for a weight of 0.05 or more; weights next to this limit are rounded.
                assert set(map(tuple, np.argwhere(expected[layer] >= 0.0501))) <= set(values)
                for place, value in values.items():
                    assert value >= 0.05
                    assert value == pytest.approx(expected[layer][place], abs=6e-5)  # four digits
    assert result["first"] == "cross-attention"
    heads = list(range(expected.shape[1]))
    assert (result["without"], result["all"]) == (heads[1:], heads)
    assert (result["single"], result["next"], result["none"]) == ([0], [1], "No head is selected.")
    assert result["mean"] > 0
    assert result["meanWeight"] == pytest.approx(result["meanByHand"])
    assert result["hovered"] == [1]
    assert "head 1: " in result["readout"]
    assert (result["focused"], result["pinned"], result["tabStops"]) == ("1", [1], 2)
    assert result["pressed"] == ["false", "true"]
    assert result["left"] == result["freed"] > 1
    assert result["matrices"] == len(heads)
    assert result["cell"] == f"head 2: {result['expectedCell']}"
    assert result["pointed"] == f"head 1: {result['expectedPointed']}"
    assert max(map(abs, result["shades"])) < 0.01
    first, second, again = result["step"]
    assert first == again != second
    assert first[0][1] == "✓ kept"
    assert result["last"]
    assert "".join(result["finished"][:-1]).replace("▁", " ").strip() == result["output"]
    assert len(set(result["positions"])) == len(result["positions"]) == 4
    assert result["tables"] == ["embeddings"]
    assert len(result["neighbors"]) == 8
    for count in ("unlabeled", "unreachable", "external", "images"):
        assert result[count] == 0, count


# Shows the page in a frame of 390 pixels, in each drawing, and measures how far it overflows.
NARROW = """
const change = (frame, name, value) => { const box = frame.contentDocument.getElementById(name);
  box.value = value; box.dispatchEvent(new Event("change")); };
const frame = document.querySelector("iframe"), page = frame.contentDocument;
const overflow = () => page.documentElement.scrollWidth - frame.clientWidth;
result.width = frame.contentWindow.innerWidth;
result.overflow = [overflow()];
change(frame, "form", "matrix"); result.overflow.push(overflow());
result.tokens = [...page.querySelectorAll(".token[data-side=key]")].map(token => token.textContent);
result.text = page.getElementById("text").textContent;
result.images = page.images.length;
result.back = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("scheme", "back"), [(1, "rgb(255, 255, 255)"), (0, "rgb(22, 22, 22)")])
def test_a_phone_shows_any_script_without_overflow_in_light_and_dark(tmp_path, scheme, back):
    (tmp_path / "frame.html").write_text(render("explorer.html", title=HOSTILE[0], data=large_data()))
    outer = '<body><iframe src="frame.html" width="390" height="800" style="border: 0"></iframe></body>'
    script = f"addEventListener('load', () => {{{NARROW}; show(); }});"
    result = run_script(
        outer,
        script,
        tmp_path,
        f"--blink-settings=preferredColorScheme={scheme}",
        "--allow-file-access-from-files",
        is_deferred=True,
    )
    assert result["width"] == 390
    assert max(result["overflow"]) <= 0
    assert result["tokens"] == [HOSTILE[i % len(HOSTILE)] + str(i) for i in range(30)]
    assert result["text"] == HOSTILE[0]
    assert result["images"] == 0
    assert result["back"] == back
