"""An animation of one sentence on its way through the encoder-decoder."""

import html
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.pages import PALETTE
from experiments.trained_model import Trained
from transformer.batch import TokenBatch
from transformer.evaluation.attention import AttentionWeights, attention_weights

NUM_CELLS = 8  # cells of a drawn vector; each is the mean of adjacent channels
ALTERNATIVE = "A sentence on its way through the encoder and the decoder, drawn layer by layer."
TOKEN_WIDTH, LAYER_HEIGHT, CELL, LABEL_WIDTH = 84, 84, 9, 76
MIN_WEIGHT = 0.03  # lines of smaller weights could not be seen
BLUE, ORANGE, GREEN, VIOLET = (PALETTE[number] for number in (0, 1, 2, 6))  # two for cells, two for lines

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
      g.style.opacity = frame === current || g.dataset.stays === "1" ? 1 : 0.25;
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


class Place(NamedTuple):
    """The place of a stack in the drawing.

    Attributes:
      left: left end of the first token.
      bottom: lower end of the tokens.
    """

    left: float
    bottom: float

    def x(self, token: int) -> float:
        """Returns the middle of a token."""
        return self.left + TOKEN_WIDTH * (token + 0.5)

    def y(self, layer: int) -> float:
        """Returns the top of the vectors of a layer; layer 0 is the embeddings."""
        return self.bottom - 44 - LAYER_HEIGHT * layer


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
    """Returns HTML with the animation of a translation; see `drawing`."""
    encoder, decoder, weights = sides(trained, source, target)
    return drawing(encoder, decoder, trained.tokenizer.names(target), weights.cross.mean(axis=(0, 1)))


def drawing(encoder: Side, decoder: Side, words: Sequence[str], cross: Float[np.ndarray, "t s"]) -> str:
    """Returns HTML with an animation: an SVG, buttons, and a caption.

    Without scripts, all steps are visible and there are no buttons. A print has all steps, too.

    Args:
      encoder: the drawn parts of the encoder.
      decoder: the drawn parts of the decoder.
      words: the token that each step of the decoder predicts.
      cross: cross-attention, as the mean of all layers and heads.
    """
    height = LAYER_HEIGHT * (len(encoder.vectors) + 2)
    source = Place(LABEL_WIDTH, height)
    # The decoder is drawn beside the encoder, one layer higher.
    target = Place(source.left + TOKEN_WIDTH * (len(encoder.tokens) + 0.6), height - LAYER_HEIGHT)
    tops = source.y(len(encoder.vectors) - 1), target.y(len(decoder.vectors) - 1) + CELL
    cross_lines = _lines(cross, source, tops[0], target, tops[1], "cross")
    frames = [*_encoder_frames(encoder, source), *_decoder_frames(decoder, target, words, cross_lines)]
    right = target.left + TOKEN_WIDTH * len(decoder.tokens)
    labels = [
        *_labels("encoder", source, LABEL_WIDTH / 2, len(encoder.vectors) - 1, "source"),
        *_labels("decoder", target, right + LABEL_WIDTH / 2, len(decoder.vectors) - 1, "reads"),
        _text(right + LABEL_WIDTH / 2, 20, "predicts", "label"),
    ]
    return _page(frames, labels, right + LABEL_WIDTH, height)


def _labels(stack: str, place: Place, x: float, num_layers: int, tokens: str) -> Iterator[str]:
    """Names the rows of a stack: its tokens, the embeddings and each layer."""
    yield _text(x, place.bottom - 8, tokens, "label")
    rows = [("embedding", "+ position"), *((stack, f"layer {layer + 1}") for layer in range(num_layers))]
    for layer, lines in enumerate(rows):
        for number, line in enumerate(lines):
            yield _text(x, place.y(layer) + 2 + 13 * number, line, "label")


def _encoder_frames(encoder: Side, place: Place) -> Iterator[Frame]:
    yield Frame("the source tokens", _tokens(encoder.tokens, place), stays=True)
    yield Frame("embeddings and positions", _strips(encoder.vectors[0], place, 0), stays=True)
    for layer, weights in enumerate(encoder.weights, start=1):
        parts = [*_self_lines(weights, place, layer), *_strips(encoder.vectors[layer], place, layer)]
        yield Frame(f"encoder, layer {layer}: every token attends to every token", parts)


def _decoder_frames(
    decoder: Side, place: Place, words: Sequence[str], cross_lines: Sequence[str]
) -> Iterator[Frame]:
    layers = [_tokens(decoder.tokens, place)]
    layers += [_strips(vectors, place, layer) for layer, vectors in enumerate(decoder.vectors)]
    layers += [_self_lines(weights, place, layer) for layer, weights in enumerate(decoder.weights, start=1)]
    for step, (read, word) in enumerate(zip(decoder.tokens, words, strict=True)):
        parts = [*(layer[step] for layer in layers), cross_lines[step]]
        parts.append(_text(place.x(step), 20, word, "out"))
        yield Frame(f"decoder, step {step + 1}: reads {read}, attends to the source, predicts {word}", parts)


def _page(frames: Sequence[Frame], labels: Sequence[str], width: float, height: float) -> str:
    captions = html.escape(json.dumps([frame.caption for frame in frames]))
    content = "".join(
        f'<g data-frame="{number}" data-stays="{int(frame.stays)}">{"".join(frame.parts)}</g>'
        for number, frame in enumerate(frames)
    )
    return f"""<div class="flow" lang="en" data-captions="{captions}">
<style>
.flow .scroll {{ overflow-x: auto; }}
.flow svg {{ width: 100%; min-width: 560px; height: auto; font: 13px system-ui, sans-serif; }}
.flow text {{ fill: currentColor; text-anchor: middle; }} .flow .out {{ font-weight: 700; }}
.flow .label {{ font-size: 12px; opacity: .7; }}
.flow line {{ stroke: {GREEN}; stroke-width: 2; }} .flow line.cross {{ stroke: {VIOLET}; }}
.flow rect {{ stroke: #8888; stroke-width: .5; }}
@media print {{ .flow button, .flow output {{ display: none; }} }}
</style>
<div class="scroll">
<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{ALTERNATIVE}">
{content}
{"".join(labels)}
</svg>
</div>
<p role="group" aria-label="steps" hidden>
<button type="button" data-do="back">Back</button> <button type="button" data-do="play">Play</button>
<button type="button" data-do="next">Next</button> <output aria-live="polite">all steps</output></p>
<script>{SCRIPT}</script>
</div>"""


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{html.escape(text)}</text>'


def _tokens(tokens: Sequence[str], place: Place) -> list[str]:
    """Draws each token below its vectors."""
    return [_text(place.x(number), place.bottom - 8, token) for number, token in enumerate(tokens)]


def _strips(vectors: Float[np.ndarray, "t c"], place: Place, layer: int) -> list[str]:
    """Draws each vector as a strip of cells: blue is positive, orange is negative."""
    scale = float(np.abs(vectors).max())
    return [
        "".join(
            f'<rect x="{place.x(token) + CELL * (number - NUM_CELLS / 2):.0f}" y="{place.y(layer):.0f}" '
            f'width="{CELL}" height="{CELL}" fill="{BLUE if value > 0 else ORANGE}" '
            f'fill-opacity="{abs(value) / scale:.2f}"/>'
            for number, value in enumerate(vector)
        )
        for token, vector in enumerate(vectors)
    ]


def _self_lines(weights: Float[np.ndarray, "t t"], place: Place, layer: int) -> list[str]:
    return _lines(weights, place, place.y(layer - 1), place, place.y(layer) + CELL)


def _lines(
    weights: Float[np.ndarray, "q k"], keys: Place, start: float, queries: Place, end: float, kind: str = ""
) -> list[str]:
    """Draws a line for each weight, from the key at height `start` to the query at height `end`."""
    return [
        "".join(
            f'<line x1="{keys.x(key):.0f}" y1="{start:.0f}" x2="{queries.x(query):.0f}" y2="{end:.0f}" '
            f'opacity="{weight:.2f}" class="{kind}"/>'
            for key, weight in enumerate(row)
            if weight >= MIN_WEIGHT
        )
        for query, row in enumerate(weights)
    ]
