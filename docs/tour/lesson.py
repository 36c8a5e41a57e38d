"""Models and drawings that the chapters of the tour share."""

import functools
import itertools
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from matplotlib.figure import Figure

from experiments import plots
from experiments.ablation_report import effect_cells, measure_effects
from experiments.run_folder import Run
from experiments.trained_model import Trained, load_trained, open_task_of
from transformer.batch import TokenBatch
from transformer.config import EOS, DecodeConfig, from_dict
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.beam_steps import BeamStep
from transformer.decoding.beam_steps import beam_steps as search_steps
from transformer.decoding.scorer import Scorer
from transformer.decoding.translator import Translator
from transformer.evaluation.ablation import parts
from transformer.evaluation.attention import AttentionWeights, attention_weights
from transformer.model import LogitFactors, build_model, init_params
from transformer.model.dropout import Dropout
from transformer.model.transformer import Transformer
from transformer.training.losses import summed_cross_entropy
from transformer.training.parallelism import Single
from transformer.training.train_step import init_state, make_train_step
from transformer.training.trainable import Hyperparameters

if "IPython" in sys.modules:  # only in a chapter; the tests need no IPython
    from IPython import get_ipython
    from IPython.core.pylabtools import select_figure_formats

    select_figure_formats(get_ipython(), {"png"})  # shows the figures that our functions return
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns that it only reads

NUMBER_RUN = Path(__file__).parents[1] / "_build" / "runs" / "numbers"  # `make docs` trains it

# Every animal can be tired, and every place can be wide.
ANIMALS = ("animal", "dog", "cat", "horse", "bear", "cow", "sheep", "rabbit", "goat")
PLACES = ("street", "river", "field", "square", "bridge", "valley", "path", "meadow", "desert")
OF_ANIMALS = ("tired", "hungry", "old", "sick", "frightened", "weak")
OF_PLACES = ("wide", "long", "steep", "dark", "muddy", "busy")
VERBS = ("cross", "leave", "see", "like")
IT = 8  # position of "it" in a sentence


def recurrence_scores() -> tuple[list[int], dict[str, Float[np.ndarray, "lengths 2"]]]:
    """Returns the scores of the study of recurrence on its split `test`.

    Returns:
      The largest number of source tokens in each group of sentences; and by model, the mean and the standard
      deviation of its exact match in each group.
    """
    page = (Path(__file__).parents[1] / "studies" / "recurrence.md").read_text()
    lengths = re.search(r"source tokens, up to \|(.*)\|\n", page)[1].split("|")
    rows = re.findall(r"\n\| test: (\w+) \|(.*)\|", page)
    scores = {name: np.array([cell.split("±") for cell in cells.split("|")], float) for name, cells in rows}
    return [int(length) for length in lengths], scores


def number_model() -> Trained:
    """Returns the model that translates number lists."""
    return load_trained(Run(NUMBER_RUN))


def translate(trained: Trained, sentence: str) -> tuple[list[str], list[str], AttentionWeights]:
    """Returns the source tokens, the tokens of the translation, and the attention weights."""
    source = trained.tokenizer.encode(sentence)
    (text,) = Translator(trained.model, trained.params, trained.tokenizer)([sentence])
    target = trained.tokenizer.encode(text)
    weights = attention_weights(trained.model, trained.params, source, target)
    return trained.tokenizer.names(source), trained.tokenizer.names(target), weights


class PronounModel(NamedTuple):
    """An encoder that names the noun of a pronoun.

    Attributes:
      model, params: the Transformer whose encoder reads the sentence.
      ids: the token of each word.
      accuracy: share of held-out sentences whose noun is named correctly.
    """

    model: Transformer
    params: PyTree
    ids: dict[str, int]
    accuracy: float

    def weights(self, sentence: str) -> Float[np.ndarray, "layers h s s"]:
        """Returns the self-attention of a sentence."""
        tokens = [self.ids[word] for word in sentence.split()]
        return attention_weights(self.model, self.params, tokens, tokens).encoder

    def noun(self, sentence: str) -> str:
        """Returns the noun that the model names at "it"."""
        tokens = jnp.array([[self.ids[word] for word in sentence.split()]])
        logits = _logits_at_it(self.model, self.params, tokens, None).logits()
        best = int(jnp.argmax(logits[0]))
        return next(word for word, token in self.ids.items() if token == best)


def pronoun_sentences() -> list[tuple[str, str]]:
    """Returns all sentences, each with the noun that "it" stands for."""
    return [
        (
            f"the {animal} did not {verb} the {place} because it was too {adjective}",
            animal if adjective in OF_ANIMALS else place,
        )
        for animal, verb, place, adjective in itertools.product(
            ANIMALS, VERBS, PLACES, (*OF_ANIMALS, *OF_PLACES)
        )
    ]


@functools.cache
def pronoun_model(seed: int = 0) -> PronounModel:
    """Trains the encoder of a Transformer to name, at "it", the noun that "it" stands for."""
    sentences, nouns = zip(*pronoun_sentences(), strict=True)
    words = sorted({word for sentence in sentences for word in sentence.split()})
    ids = {word: number for number, word in enumerate(words, start=4)}  # after the special tokens
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sentences))
    tokens = np.array([[ids[word] for word in sentences[number].split()] for number in order])
    labels = np.array([ids[nouns[number]] for number in order])
    num_training = len(order) * 8 // 10
    config = from_dict(
        {
            "model": {"num_layers": 2, "d_model": 64, "d_ff": 128, "num_heads": 2, "dropout_sites": "all"},
            "optimizer": {"warmup_steps": 50, "learning_rate": 5e-3},
            "train": {"steps": 300, "label_smoothing": 0.0},
        }
    )
    model = build_model(config.model, len(ids) + 4)
    loss_fn = functools.partial(_pronoun_loss, model)
    step = make_train_step(loss_fn, config, Single())
    state, hyperparameters = init_state(init_params(model, seed), config), Hyperparameters.from_config(config)
    for number in range(config.train.steps):
        batch = rng.integers(0, num_training, 64)
        state, *_ = step(state, (tokens[batch], labels[batch]), jax.random.key(number), hyperparameters)
    held_out = (tokens[num_training:], labels[num_training:])
    totals = loss_fn(state.params, held_out, None, hyperparameters)[1]
    return PronounModel(model, state.params, ids, float(totals["correct"] / totals["count"]))


def _logits_at_it(
    model: Transformer, params: PyTree, tokens: Int[Array, "b s"], dropout: Dropout | None
) -> LogitFactors:
    """Applies the output matrix to the encoder's vector of "it"."""
    encoded = model.apply({"params": params}, TokenBatch.from_tokens(tokens), dropout, method="encode")
    return model.apply(
        {"params": params}, encoded[:, IT], method=lambda model, x: model.embedding.logit_factors(x)
    )


def _pronoun_loss(model, params, batch, key, hyperparameters):
    tokens, labels = batch
    dropout = None if key is None else Dropout(key, hyperparameters.dropout_rate)
    factors = _logits_at_it(model, params, tokens, dropout)
    counts = jnp.ones(len(labels), bool)
    loss, nll, correct = summed_cross_entropy(factors, labels, counts, hyperparameters.label_smoothing)
    return loss, {"loss": loss, "nll": nll, "correct": correct, "count": jnp.float32(len(labels))}


def mean_loss(trained: Trained, num_sentences: int = 100) -> float:
    """Returns the loss on test sentences, in nats per token."""
    scorer = Scorer(trained.model, trained.params, trained.tokenizer, trained.config.decode)
    return -float(np.concatenate(scorer.log_probs(*_test_sentences(trained, num_sentences))).mean())


def head_effects(trained: Trained, num_sentences: int = 100) -> dict[str, dict[str, float]]:
    """Returns the loss that the removal of each part adds, in nats per token, as cells[sub-layer][head]."""
    measured, _ = measure_effects(trained, *_test_sentences(trained, num_sentences))
    return effect_cells(measured, parts(trained.model.config))


def _test_sentences(trained: Trained, count: int) -> tuple[Sequence[str], Sequence[str]]:
    pairs = open_task_of(Run(NUMBER_RUN), trained).test_set("test")
    return pairs.sources[:count], pairs.references[:count]


def hidden_units(trained: Trained, sentence: str) -> tuple[list[str], Float[np.ndarray, "s f"]]:
    """Returns the tokens, and the first hidden layer of the encoder before the ReLU."""
    tokens = trained.tokenizer.encode(sentence)
    _, state = trained.model.apply(
        {"params": trained.params},
        TokenBatch.from_tokens(jnp.array([tokens])),
        method="encode",
        capture_intermediates=lambda module, _: module.name == "inner",
    )
    (units,) = state["intermediates"]["encoder"]["layers_0"]["feed_forward"]["inner"]["__call__"]
    return trained.tokenizer.names(tokens), np.asarray(units[0])


def beam_steps(trained: Trained, sentence: str, beam_size: int) -> list[BeamStep]:
    """Returns the hypotheses after each step of a beam search; see `transformer.decoding.beam_steps`."""
    source, config = trained.tokenizer.encode(sentence), DecodeConfig(beam_size=beam_size)
    return search_steps(trained.model, trained.params, source, config, len(source) + config.max_extra_length)


def best_output(steps: Sequence[BeamStep]) -> tuple[int, ...]:
    """Returns the tokens of the best output of a search."""
    return next(iter(steps[-1].completed))


def beam_tree(steps: Sequence[BeamStep], tokenizer: Tokenizer) -> Figure:
    """Draws the hypotheses that a search kept, one column per step; a thick path leads to the best output.

    A node has the last token of its hypothesis and below it the probability or, at an end, the score.
    """
    best, num_rows = best_output(steps), max(len(step.live) for step in steps)
    figure = Figure(figsize=(1.1 * len(steps) + 1, 0.75 * num_rows + 0.4), layout="constrained")
    axes = figure.subplots()
    places: dict[tuple[int, ...], tuple[int, int]] = {(): (0, 0)}
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white"}
    style = {"ha": "center", "va": "center", "fontsize": 8, "zorder": 2}
    axes.text(0, 0, "<s>", bbox=box | {"edgecolor": "C0"}, **style)
    for column, step in enumerate(steps, start=1):
        ended = {tokens: score for tokens, score in step.completed.items() if len(tokens) == column}
        for row, tokens in enumerate((*step.live, *ended)):
            places[tokens] = (column, -row)
            (x, y), is_best = places[tokens[:-1]], best[:column] == tokens
            color, width = ("C0", 3) if is_best else ("0.7", 1)
            axes.plot([x, column], [y, -row], color=color, linewidth=width, zorder=1)
            name = plots.label(tokenizer.names([tokens[-1]])[0])
            number = f"score {ended[tokens]:.2f}" if tokens in ended else f"{np.exp(step.live[tokens]):.2g}"
            axes.text(column, -row, f"{name}\n{number}", bbox=box | {"edgecolor": color}, **style)
    lowest = min(y for _, y in places.values())
    axes.set(xlim=(-0.2, len(steps) + 0.5), ylim=(lowest - 0.45, 0.45))
    axes.axis("off")
    return figure


def layer_diagram(model: Transformer, params: PyTree) -> Figure:
    """Draws an encoder layer and a decoder layer: the sub-layers in their order, and their inputs."""
    batch = TokenBatch.from_tokens(jnp.array([[EOS]]))
    _, state = model.apply(
        {"params": params}, batch, batch, capture_intermediates=lambda _, method: method == "after"
    )
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    line = {"color": "0.4", "linewidth": 1.2}
    arrow = {"arrowprops": {"arrowstyle": "->", **line, "shrinkA": 0, "shrinkB": 0}}
    # The decoder is drawn higher, so that the encoder's output is level with cross-attention.
    for stack, x, side, bottom in (("encoder", 0, -1, -1.7), ("decoder", 2, 1, 0)):
        layer = state["intermediates"][stack]["layers_0"]
        names = [name.removesuffix("_residual") for name in layer if name.endswith("_residual")]
        axes.text(x, bottom + 0.2, f"{stack}: from the layer below", ha="center", va="top")
        for number, name in enumerate(names):
            y = bottom + 2 * number
            for height, text, color in (
                (1, name.replace("_", " "), "C0"),
                (1.9, "add, then normalize", "0.4"),
            ):
                box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": color}
                axes.annotate("", (x, y + height - 0.25), (x, y + height - 0.7), **arrow)
                axes.text(x, y + height, text, ha="center", va="center", bbox=box, zorder=2)
            axes.plot([x, x + 0.8 * side, x + 0.8 * side], [y + 0.45, y + 0.45, y + 1.9], **line)
            axes.annotate("", (x + 0.46 * side, y + 1.9), (x + 0.8 * side, y + 1.9), **arrow)
        top = bottom + 2 * len(names)
        if stack == "decoder":
            axes.annotate("", (x, top + 0.5), (x, top + 0.15), **arrow)
            axes.text(x, top + 0.6, "to the layer above", ha="center")
        else:
            axes.plot([x, x, x + 1], [top + 0.15, top + 0.7, top + 0.7], **line)
            axes.annotate("", (x + 1.65, top + 0.7), (x + 0.95, top + 0.7), **arrow)
            axes.text(x + 0.05, top + 0.8, "keys and values,\nfrom the last layer", ha="left")
    axes.set(xlim=(-1, 3), ylim=(-2.1, 7))
    axes.axis("off")
    return figure
