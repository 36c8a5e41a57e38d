"""An animation of one sentence on its way through the encoder-decoder."""

import html
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.run_folder import Trained
from transformer.batch import TokenBatch
from transformer.evaluation.attention import AttentionWeights, attention_weights

NUM_CELLS = 8  # cells of a drawn vector; each is the mean of adjacent channels
ALTERNATIVE = "A sentence on its way through the encoder and the decoder, drawn layer by layer."
TOKEN_WIDTH, LAYER_HEIGHT, CELL = 84, 84, 9

SCRIPT = """
(() => {
  const root = document.currentScript.closest(".flow");
  const frames = [...root.querySelectorAll("svg g[data-frame]")];
  const caption = root.querySelector("output"), captions = JSON.parse(root.dataset.captions);
  const play = root.querySelector("[data-do=play]");
  root.querySelector("[role=group]").hidden = false;
  let current = captions.length - 1, timer = null;
  const show = number => {
    current = (number + captions.length) % captions.length;
    for (const g of frames) {
      const frame = Number(g.dataset.frame);
      g.style.visibility = frame <= current ? "visible" : "hidden";
      g.style.opacity = frame === current || g.dataset.stays ? 1 : 0.25;
    }
    caption.textContent = `${current + 1} of ${captions.length}: ${captions[current]}`;
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const actions = {
    play: () => {
      if (timer) return stop();
      play.textContent = "Pause";
      show(current === captions.length - 1 ? 0 : current + 1);
      timer = setInterval(() => current === captions.length - 1 ? stop() : show(current + 1), 1500);
    },
    back: () => { stop(); show(current - 1); },
    next: () => { stop(); show(current + 1); },
  };
  for (const button of root.querySelectorAll("button"))
    button.addEventListener("click", () => actions[button.dataset.do]());
  addEventListener("beforeprint", () => {
    stop();
    for (const g of frames) { g.style.visibility = "visible"; g.style.opacity = 1; }
  });
  addEventListener("afterprint", () => show(current));
})();
"""


class Side(NamedTuple):
    """The drawn parts of a stack.

    Attributes:
      tokens: the tokens below the stack.
      vectors: one array [tokens, NUM_CELLS] for the embeddings, and one per layer.
      weights: self-attention of each layer, as the mean of its heads.
    """

    tokens: Sequence[str]
    vectors: Sequence[Float[np.ndarray, "t c"]]
    weights: Float[np.ndarray, "layers t t"]


class Frame(NamedTuple):
    """A step of the animation.

    Attributes:
      caption: describes the step.
      parts: SVG elements that this step adds.
      stays: whether the parts stay opaque in later steps.
    """

    caption: str
    parts: Sequence[str]
    stays: bool = False


def sides(trained: Trained, source: list[int], target: list[int]) -> tuple[Side, Side, AttentionWeights]:
    """Returns the drawn parts of the encoder and of the decoder, and all attention weights."""
    weights = attention_weights(trained.model, trained.params, source, target)
    batches = [TokenBatch.from_tokens(jnp.array([tokens])) for tokens in (source, target)]
    _, state = trained.model.apply(
        {"params": trained.params},
        *batches,
        capture_intermediates=lambda module, method: (
            method == "__call__" and (module.name or "").startswith(("positions", "layers_"))
        ),
    )
    names = trained.tokenizer.names
    inputs = {"encoder": names(source), "decoder": ["<s>", *names(target)[:-1]]}
    drawn = []
    for name, attention in (("encoder", weights.encoder), ("decoder", weights.decoder)):
        captured = state["intermediates"][name]
        layers = sorted(key for key in captured if key.startswith("layers_"))
        vectors = [captured["positions"]["__call__"][0], *(captured[key]["__call__"][0][0] for key in layers)]
        pooled = [np.asarray(x)[0].reshape(x.shape[1], NUM_CELLS, -1).mean(axis=-1) for x in vectors]
        drawn.append(Side(inputs[name], pooled, attention.mean(axis=1)))
    return *drawn, weights


def animation(trained: Trained, source: list[int], target: list[int]) -> str:
    """Returns HTML with the animation: an SVG, buttons, and a caption.

    Without scripts, all steps are visible and there are no buttons. A print has all steps, too.
    """
    encoder, decoder, weights = sides(trained, source, target)
    height = LAYER_HEIGHT * (len(encoder.vectors) + 2)
    left = TOKEN_WIDTH * (len(encoder.tokens) + 0.6)  # where the decoder begins
    width = left + TOKEN_WIDTH * len(decoder.tokens)
    words, cross = trained.tokenizer.names(target), weights.cross.mean(axis=(0, 1))
    frames = [
        *_encoder_frames(encoder, height),
        *_decoder_frames(decoder, words, cross, left, height, _y(len(encoder.vectors) - 1, height)),
    ]
    return _page(frames, width, height)


def _encoder_frames(encoder: Side, height: float) -> Iterator[Frame]:
    yield Frame("the source tokens", _tokens(encoder.tokens, 0, height), stays=True)
    yield Frame("embeddings and positions", _strips(encoder.vectors[0], 0, height, 0), stays=True)
    for layer, weights in enumerate(encoder.weights, start=1):
        lines = _self_lines(weights, 0, height, layer)
        strips = _strips(encoder.vectors[layer], 0, height, layer)
        yield Frame(f"encoder, layer {layer}: every token attends to every token", [*lines, *strips])


def _decoder_frames(
    decoder: Side,
    words: Sequence[str],
    cross: Float[np.ndarray, "t s"],
    left: float,
    height: float,
    source_top: float,
) -> Iterator[Frame]:
    above = height - LAYER_HEIGHT  # the decoder is drawn one layer higher than the encoder
    for step, word in enumerate(words):
        column = slice(step, step + 1)
        parts = _tokens(decoder.tokens[column], left, above, step)
        for layer, vectors in enumerate(decoder.vectors):
            parts += _strips(vectors[column], left, above, layer, step)
            if layer:
                parts += _self_lines(decoder.weights[layer - 1][column], left, above, layer, step)
        end = (_x(step, left), _y(len(decoder.vectors) - 1, above) + CELL)
        parts += [_line(_x(i, 0), source_top, *end, weight, "cross") for i, weight in enumerate(cross[step])]
        parts.append(_text(_x(step, left), 20, word, "out"))
        read = decoder.tokens[step]
        yield Frame(f"decoder, step {step + 1}: reads {read}, attends to the source, predicts {word}", parts)


def _page(frames: Sequence[Frame], width: float, height: float) -> str:
    captions = html.escape(json.dumps([frame.caption for frame in frames]))
    content = "".join(
        f'<g data-frame="{number}"{" data-stays=1" * frame.stays}>{"".join(frame.parts)}</g>'
        for number, frame in enumerate(frames)
    )
    return f"""<div class="flow" lang="en" data-captions="{captions}">
<style>
.flow svg {{ width: 100%; height: auto; font: 13px system-ui, sans-serif; }}
.flow text {{ fill: currentColor; text-anchor: middle; }} .flow .out {{ font-weight: 700; }}
.flow line {{ stroke: #0072b2; stroke-width: 2; }} .flow line.cross {{ stroke: #d55e00; }}
.flow rect {{ stroke: #8888; stroke-width: .5; }}
@media print {{ .flow button, .flow output {{ display: none; }} }}
</style>
<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{ALTERNATIVE}">
{content}
</svg>
<p role="group" aria-label="steps" hidden>
<button type="button" data-do="back">Back</button> <button type="button" data-do="play">Play</button>
<button type="button" data-do="next">Next</button> <output aria-live="polite">all steps</output></p>
<script>{SCRIPT}</script>
</div>"""


def _x(token: int, left: float) -> float:
    return left + TOKEN_WIDTH * (token + 0.5)


def _y(layer: int, height: float) -> float:
    """Returns the top of the vectors of a layer; layer 0 is the embeddings."""
    return height - 44 - LAYER_HEIGHT * layer


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{html.escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, weight: float, kind: str = "") -> str:
    if weight < 0.03:  # too weak to be seen
        return ""
    ends = f'x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}"'
    return f'<line {ends} opacity="{weight:.2f}" class="{kind}"/>'


def _tokens(tokens: Sequence[str], left: float, height: float, first: int = 0) -> list[str]:
    return [_text(_x(first + i, left), height - 8, token) for i, token in enumerate(tokens)]


def _strips(
    vectors: Float[np.ndarray, "t c"], left: float, height: float, layer: int, first: int = 0
) -> list[str]:
    """Draws vectors as strips of cells: orange is positive, blue is negative."""
    parts, scale = [], float(np.abs(vectors).max())
    for token, vector in enumerate(vectors, start=first):
        x = _x(token, left) - CELL * NUM_CELLS / 2
        for number, value in enumerate(vector):
            color = "#d55e00" if value > 0 else "#0072b2"
            parts.append(
                f'<rect x="{x + CELL * number:.0f}" y="{_y(layer, height):.0f}" width="{CELL}" '
                f'height="{CELL}" fill="{color}" fill-opacity="{abs(value) / scale:.2f}"/>'
            )
    return parts


def _self_lines(
    weights: Float[np.ndarray, "q k"], left: float, height: float, layer: int, first: int = 0
) -> list[str]:
    below, above = _y(layer - 1, height), _y(layer, height) + CELL
    return [
        _line(_x(key, left), below, _x(query, left), above, weight)
        for query, row in enumerate(weights, start=first)
        for key, weight in enumerate(row)
    ]
