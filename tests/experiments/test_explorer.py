"""The explorer: its data, its size, escaping, and its layout on a phone."""

import base64
import shutil

import numpy as np
import pytest

from experiments.attention_views import AttentionView, ViewedSentence
from experiments.explorer import encode, page_data, sentence_data
from experiments.pages import PALETTE, render
from experiments.run_folder import Run
from experiments.speed.decode import NumberTokenizer
from experiments.trained_model import Trained
from tests.support.chromium import needs_chromium, run_script
from tests.support.commands import call, refuse
from tests.support.tiny import VOCAB, random_params, tiny_config
from transformer.config import ExperimentConfig
from transformer.model import build_model

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


@pytest.mark.parametrize("values", [np.array([0.0, 0.5, 1.0, 1 / 3]), np.array([-7.5, 0.0, 300.25])])
def test_encoded_values_are_restored_to_16_bits(values):
    width = max(1, values.max()) - min(0, values.min())
    np.testing.assert_allclose(decode(encode(values)), values, atol=width / 131_000, rtol=0)


def test_three_sentences_of_30_tokens_with_6_layers_and_8_heads_take_less_than_3_megabytes():
    assert len(render("explorer.html", title="run", data=large_data()).encode()) < 3e6


def test_a_page_that_would_be_too_large_is_refused(trained, monkeypatch):
    monkeypatch.setattr("experiments.explorer.MAX_MEGABYTES", 0.01)
    message = refuse("visualize", f"--workdir={trained}", "--sentence=one", "--page")
    assert message.startswith("the page has ")
    assert message.endswith(" give fewer or shorter sentences")


def test_bytes_that_are_not_utf_8_become_replacement_characters(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    call("visualize", f"--workdir={run}", "--sentence=one \udcff", "--page")  # how Python reads the byte FF
    page = (run / "figures/explorer.html").read_text()
    assert "one \ufffd" in page or r"one \ufffd" in page


def test_the_summary_leaves_out_what_a_model_does_not_have():
    config = ExperimentConfig(model=tiny_config(kind="recurrent_attention", num_layers=1))
    model = build_model(config.model, VOCAB)
    trained = Trained(config, NumberTokenizer(VOCAB), model, random_params(model), [5])
    summary = page_data(Run("run"), trained, [])["summary"]
    assert summary == f"recurrent_attention, layers: 1, d_model {config.model.d_model}; weights of step 5"


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
