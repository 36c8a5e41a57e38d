"""The controls of the explorer in headless Chromium. The expected weights are those of `translate`."""

import shutil

import numpy as np
import pytest

from tests.support.chromium import needs_chromium, run_script
from tests.support.commands import call

pytestmark = needs_chromium
SENTENCES = ("one; two", "three hundred and four")


@pytest.fixture(scope="module", params=["trained", pytest.param("six_layers", marks=pytest.mark.slow)])
def run(request, smoke, tmp_path_factory):
    """A copy of the trained run, or a run with six layers of eight heads."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    if request.param == "trained":
        return shutil.copytree(request.getfixturevalue("trained"), folder)
    changes = {
        "model.num_layers": 6,
        "model.num_heads": 8,
        "model.residual": "pre_norm",  # learns within the few steps
        "optimizer.learning_rate": 1e-2,
        "train.steps": 150,
    }
    call(
        "train",
        *smoke,
        *(f"--config.{field}={value}" for field, value in changes.items()),
        f"--workdir={folder}",
    )
    return folder


@pytest.fixture(scope="module")
def page(run):
    """The path of a page about the run and two sentences."""
    flags = [f"--sentence={sentence}" for sentence in SENTENCES]
    done = call("visualize", f"--workdir={run}", *flags, "--page")
    path = run / "figures" / "explorer.html"
    assert done.stdout.splitlines()[2:] == [str(path)]
    return path


@pytest.fixture(scope="module")
def weights(run, tmp_path_factory):
    """The attention weights that `translate --attention` writes, by sentence and kind."""
    path = tmp_path_factory.mktemp("weights") / "attention.npz"
    call(
        *("translate", f"--workdir={run}", f"--attention={path}"),
        stdin="".join(f"{sentence}\n" for sentence in SENTENCES).encode(),
    )
    with np.load(path) as arrays:
        return [
            {kind: arrays[f"{number}/{kind}"] for kind in ("encoder", "decoder", "cross")}
            for number in range(1, len(SENTENCES) + 1)
        ]


# Each script below is the body of a function that uses some controls and returns what the page then shows.
HELPERS = """
const find = selector => [...document.querySelectorAll(selector)];
const change = (name, value) => { id(name).value = value; id(name).dispatchEvent(new Event("change")); };
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const lines = () => find("#lines path").map(path => ({...path.dataset}));
const drawn = name => [...new Set(lines().map(line => line[name]))];  // heads, queries or keys that have lines
const readout = () => id("readout").textContent.split("\\n");
const reset = () => {
  change("sentence", 0); change("view", id("view").options.length - 1); change("layer", 0);
  change("form", "lines"); change("combine", "each"); id("all").click();
};
"""


@pytest.fixture(scope="module")
def results(page, tmp_path_factory):
    """The result of each script, by the name of the script. All run in one browser."""
    scripts = {
        "first": "return id('view').selectedOptions[0].text;",
        "lines": LINES,
        "heads": HEADS,
        "mean": MEAN,
        "pointer": POINTER,
        "keyboard": KEYBOARD,
        "matrices": MATRICES,
        "search": SEARCH,
        "positions": POSITIONS,
        "neighbors": NEIGHBORS,
        "controls": CONTROLS,
    }
    calls = [f"result.{name} = (() => {{ {script} }})(); reset();" for name, script in scripts.items()]
    return run_script(page.read_text(), "\n".join([HELPERS, *calls]), tmp_path_factory.mktemp("browser"))


LINES = """
const range = name => [...Array(id(name).options.length).keys()];
return range("sentence").map(sentence => { change("sentence", sentence);
  return range("view").map(view => { change("view", view);
    return [...Array(numLayers()).keys()].map(layer => { change("layer", layer); return lines(); }); }); });
"""


def check_lines(lines, expected):
    """Compares lines with weights [h, t, s], or [t, s] for the mean of heads."""
    drawn = {}
    for line in lines:
        place = [int(line[name]) for name in ("head", "query", "key") if line[name] != "mean"]
        drawn[tuple(place)] = float(line["weight"])
    # Weights below 0.05 have no line. Those near this limit are rounded.
    assert set(map(tuple, np.argwhere(expected >= 0.0501))) <= set(drawn)
    assert min(drawn.values()) >= 0.05
    for place, weight in drawn.items():
        assert weight == pytest.approx(expected[place], abs=6e-5)  # four digits


def test_the_lines_of_every_sentence_and_layer_are_the_weights_of_translate(results, weights):
    for views, expected_views in zip(results["lines"], weights, strict=True):
        for layers, expected_layers in zip(views, expected_views.values(), strict=True):
            for lines, expected in zip(layers, expected_layers, strict=True):
                check_lines(lines, expected)


def test_cross_attention_is_shown_first(results):
    assert results["first"] == "cross-attention"


HEADS = """
find("#heads input")[0].click(); const without = drawn("head");
id("all").click(); const all = drawn("head");
id("next-head").click(); const single = drawn("head");
id("next-head").click(); const next = drawn("head");
find("#heads input:checked").forEach(box => box.click());
return {without, all, single, next, none: drawn("head"), readout: id("readout").textContent};
"""


def test_boxes_and_buttons_select_heads(results, weights):
    heads = [str(head) for head in range(weights[0]["cross"].shape[1])]
    assert results["heads"] == {
        "without": heads[1:],
        "all": heads,
        "single": ["0"],
        "next": ["1"],
        "none": [],
        "readout": "No head is selected.",
    }


MEAN = """
find("#heads input")[0].click(); change("combine", "mean");
return lines();
"""


def test_the_mean_is_that_of_the_selected_heads(results, weights):
    check_lines(results["mean"], weights[0]["cross"][0, 1:].mean(axis=0))


POINTER = """
const token = find(".token[data-side=query]")[1];
token.dispatchEvent(new Event("mouseenter"));
const inside = drawn("query"), pressed = token.getAttribute("aria-pressed"), text = readout();
token.dispatchEvent(new Event("mouseleave"));
return {inside, pressed, text, name: token.textContent, numOutside: drawn("query").length, axis: view.queryAxis};
"""


def test_a_token_under_the_pointer_shows_its_lines_and_largest_weights(results, weights):
    shown = results["pointer"]
    assert (shown["inside"], shown["pressed"]) == (["1"], "false")
    title, *heads = shown["text"]
    assert title == f"\u2068{shown['name']}\u2069 ({shown['axis']})"
    for line, row in zip(heads, weights[0]["cross"][0, :, 1], strict=True):
        largest = [float(text.split()[-1]) for text in line.split(", \u2068")]
        np.testing.assert_allclose(largest, np.sort(row)[::-1][:3], atol=6e-5)
    assert shown["numOutside"] > 1


KEYBOARD = """
const tokens = find(".token[data-side=query]");
tokens[0].focus(); press(tokens[0], "ArrowDown");
const focused = document.activeElement === tokens[1];
tokens[1].click(); tokens[1].blur();
const kept = drawn("query"), pressed = tokens[1].getAttribute("aria-pressed");
tokens[2].focus(); tokens[2].blur();
const tabStops = find(".token").filter(token => token.tabIndex === 0).map(token => token.dataset.index);
press(tokens[1], "Escape");
return {focused, kept, pressed, tabStops, numFreed: drawn("query").length};
"""


def test_the_arrow_keys_move_between_tokens_and_a_click_keeps_one(results):
    shown = results["keyboard"]
    assert shown["focused"]
    assert (shown["kept"], shown["pressed"]) == (["1"], "true")
    assert shown["tabStops"] == ["2", "0"]  # one in each column: the last that had the focus
    assert shown["numFreed"] > 1


MATRICES = """
change("form", "matrix");
const canvases = find("#matrices canvas"), {left, top, cell} = canvases[0].layout;
for (const name of ["ArrowRight", "ArrowRight", "ArrowDown"]) press(canvases[1], name);
const cursor = readout()[0], box = canvases[0].getBoundingClientRect();
const [clientX, clientY] = [box.left + left + cell / 2, box.top + top + cell / 2];
canvases[0].dispatchEvent(new PointerEvent("pointermove", {clientX, clientY}));
const pointer = readout()[0];
canvases[0].dispatchEvent(new Event("pointerleave"));
const image = canvases[0].getContext("2d").getImageData(0, 0, canvases[0].width, canvases[0].height);
const middle = (start, index) => Math.floor((start + (index + .5) * cell) * devicePixelRatio);
const alpha = (row, column) => image.data[4 * (middle(top, row) * image.width + middle(left, column)) + 3] / 255;
const shades = view.queries.map((_, row) => view.keys.map((_, column) => alpha(row, column)));
return {number: canvases.length, cursor, pointer, shades};
"""


def test_a_matrix_has_the_weights_as_shades_and_shows_the_value_of_a_cell(results, weights):
    shown, expected = results["matrices"], weights[0]["cross"][0]
    assert shown["number"] == len(expected)
    for text, place in ((shown["pointer"], (0, 0, 0)), (shown["cursor"], (1, 1, 1))):
        title, value = text.split(": ")
        assert title == f"head {place[0] + 1}"
        assert float(value) == pytest.approx(expected[place], abs=6e-5)
    np.testing.assert_allclose(shown["shades"], expected[0], atol=0.01)  # a shade has 8 bits


SEARCH = """
const steps = () => find("#candidates tr").map(row => [...row.cells].map(cell => cell.textContent.trim()));
const isOff = name => id(name).getAttribute("aria-disabled") === "true";
const first = steps(), offAtFirst = ["previous", "next"].filter(isOff);
id("next").click(); const second = steps();
id("previous").click(); const again = steps();
id("step").value = id("step").max; id("step").dispatchEvent(new Event("input"));
const last = steps(), offAtLast = ["previous", "next"].filter(isOff);
id("next").click(); const end = steps();
const finished = find("#completed tr:first-child bdi").map(token => token.textContent);
return {first, second, again, last, end, offAtFirst, offAtLast, finished, output: id("output").textContent};
"""


def test_the_search_is_shown_step_by_step_up_to_the_translation(results):
    shown = results["search"]
    assert shown["first"] == shown["again"] != shown["second"]
    assert shown["first"][0][1] == "✓ kept"
    assert shown["last"] == shown["end"]
    assert (shown["offAtFirst"], shown["offAtLast"]) == (["previous"], ["next"])
    *tokens, _ = shown["finished"]  # the last is EOS
    assert "".join(tokens).replace("▁", " ").strip() == shown["output"]


POSITIONS = """
return [...id("position-view").options].map((option, number) => {
  change("position-view", number);
  const canvas = document.querySelector("#position-matrix canvas");
  for (const key of ["ArrowDown", "ArrowRight"]) press(canvas, key);
  return [option.text, id("position-readout").textContent];
});
"""


def test_each_matrix_of_positions_shows_the_value_of_a_cell(results):
    for (title, readout), (matrix, column_axis) in zip(
        results["positions"],
        [
            ("encoder: table", "channel"),
            ("encoder: dot product", "position"),
            ("decoder: table", "channel"),
            ("decoder: dot product", "position"),
        ],
        strict=True,
    ):
        assert title == matrix
        caption, *place = readout.split("\n")
        assert caption.startswith(f"{matrix} (rows: position, columns: {column_axis}): ")
        assert place == ["position: \u20680\u2069", f"{column_axis}: \u20681\u2069"]
    _, readout = results["positions"][0]
    assert ": 1.0000\n" in readout  # the cosine of 0


NEIGHBORS = """
const tables = [...id("table").options].map(option => option.text);
change("token", 1);
return {tables, rows: find("#nearest tr").map(row => [...row.cells].slice(0, 2).map(cell => cell.textContent))};
"""


def test_the_nearest_embeddings_of_a_token_are_listed_by_their_cosine(results):
    assert results["neighbors"]["tables"] == ["embeddings"]
    names, cosines = zip(*results["neighbors"]["rows"], strict=True)
    assert len(set(names)) == 8
    assert list(cosines) == sorted(cosines, key=float, reverse=True)


CONTROLS = """
const faults = {
  unlabeled: find("select, input").filter(control => !control.labels.length),
  unreachable: find("select, button:not(.token), input").filter(control => control.tabIndex < 0),
  empty: find("h1, h2, h3").filter(heading => !heading.textContent),
  external: find("[src], link[href], img"),
};
return Object.entries(faults).flatMap(([name, elements]) => elements.map(element => [name, element.outerHTML]));
"""


def test_every_control_has_a_label_and_a_place_in_the_order_of_tab_and_nothing_is_loaded(results):
    assert results["controls"] == []
