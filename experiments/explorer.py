"""The explorer: one HTML file with the attention, the search, the positions and the embeddings of a model."""

import base64
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.attention_views import ViewedSentence, token_names
from experiments.pages import PALETTE, render
from experiments.run_folder import Run
from experiments.trained_model import Trained
from transformer.config import UserError
from transformer.decoding.beam_steps import BeamStep, Scores, beam_steps
from transformer.decoding.translator import Translator
from transformer.evaluation.position_effects import PositionEffects, position_effects
from transformer.fidelity import is_read
from transformer.model.embedding import EMBEDDINGS

MAX_MEGABYTES = 20
NUM_POSITIONS = 64  # positions in a matrix
NUM_NEIGHBORS = 8
EXTRA_CANDIDATES = 4  # candidates of a step that are shown beyond the beam size
MAX_CODE = 2**16 - 1


def explorer_page(run: Run, trained: Trained, sentences: Sequence[ViewedSentence]) -> str:
    """Returns the page of a run and some sentences.

    Raises:
      UserError: the page would be too large.
    """
    html = render("explorer.html", title=run.folder.name, data=page_data(run, trained, sentences))
    if (size := len(html.encode()) / 1e6) > MAX_MEGABYTES:
        raise UserError(
            f"the page has {size:.0f} MB; it may have {MAX_MEGABYTES}; give fewer or shorter sentences"
        )
    return html


def page_data(run: Run, trained: Trained, sentences: Sequence[ViewedSentence]) -> dict[str, Any]:
    """Returns the data that the page shows, as values that JSON can represent."""
    effects = position_effects(trained.model, trained.params, NUM_POSITIONS)
    return {
        "run": str(run.folder),
        "summary": _summary(trained),
        "colors": PALETTE,
        "sentences": [sentence_data(trained, sentence) for sentence in sentences],
        "positions": [view for stack, effect in effects.items() for view in _position_data(stack, effect)],
        "neighbors": list(_neighbor_data(trained, sentences)),
    }


def _summary(trained: Trained) -> str:
    """Returns the kind and the sizes of a model, and the steps of its weights."""
    model, config = trained.config.model, trained.config
    parts = [model.kind, f"layers: {model.num_layers}"]
    if is_read("model.num_heads", config):
        parts.append(f"heads: {model.num_heads}")
    parts.append(f"d_model {model.d_model}")
    if is_read("model.positions", config):
        parts.append(f"positions {model.positions}")
    return f"{', '.join(parts)}; weights of step {', '.join(map(str, trained.steps))}"


def encode(values: Float[np.ndarray, "..."]) -> dict[str, Any]:
    """Returns an array as base64 of 16-bit integers; the page decodes it.

    A value x is stored as round((x - low) / (high - low) * 65535), so the error is at most
    (high - low) / 131070. Attention weights have low 0 and high 1.
    """
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    codes = np.rint((values.astype(np.float64) - low) / (high - low) * MAX_CODE).astype("<u2")
    data = base64.b64encode(codes.tobytes()).decode()
    return {"data": data, "shape": list(values.shape), "low": low, "high": high}


def sentence_data(trained: Trained, sentence: ViewedSentence) -> dict[str, Any]:
    """Returns the data of a sentence."""
    views = [
        {
            "title": view.title,
            "queries": view.queries,
            "keys": view.keys,
            "queryAxis": view.query_axis,
            "keyAxis": view.key_axis,
            "weights": encode(view.weights),
        }
        for view in sentence.views
    ]
    steps = [] if sentence.output is None else _steps(trained, sentence)
    return {"text": sentence.text, "output": sentence.output, "views": views, "steps": steps}


def _steps(trained: Trained, sentence: ViewedSentence) -> list[dict[str, Any]]:
    """Returns the steps of the search, which is never a sampling."""
    config = dataclasses.replace(trained.config.decode, sampling=False)
    translator = Translator(trained.model, trained.params, trained.tokenizer, config)
    limits, _ = translator.output_limits(np.array([sentence.source]))
    steps = beam_steps(
        trained.model,
        trained.params,
        sentence.source,
        config,
        int(limits[0]),
        config.beam_size + EXTRA_CANDIDATES,
    )
    before = [{(): 0.0}, *(step.live for step in steps[:-1])]
    return [_step_data(trained, *pair) for pair in zip(before, steps, strict=True)]


def _step_data(trained: Trained, live: Scores, step: BeamStep) -> dict[str, Any]:
    """Returns the data of a step that extends the hypotheses of `live`."""
    fates = dict.fromkeys(step.live, "kept") | dict.fromkeys(step.completed, "finished")
    candidates = [
        {
            "tokens": token_names(trained, tokens),
            "probability": math.exp(log_prob - live[tokens[:-1]]),
            "logProb": log_prob,
            "fate": fates.get(tokens, "dropped"),
        }
        for tokens, log_prob in step.candidates.items()
    ]
    completed = [
        {"tokens": token_names(trained, tokens), "score": score} for tokens, score in step.completed.items()
    ]
    return {"candidates": candidates, "completed": completed}


def _position_data(stack: str, effects: PositionEffects) -> Iterator[dict[str, Any]]:
    """Yields the matrices of a position scheme, with the meaning of their rows and columns."""
    if effects.table is not None:
        yield _matrix(f"{stack}: table", effects.table, "position", "channel")
    if effects.similarity is not None:
        yield _matrix(f"{stack}: {effects.similarity_name}", effects.similarity, "position", "position")
    for layer, bias in effects.bias_by_layer.items():
        last = bias.shape[-1] // 2
        yield _matrix(f"{stack}: bias by distance, {layer}", bias, "head", "key minus query", 1, -last)


def _matrix(
    title: str,
    values: Float[np.ndarray, "_ _"],
    row_axis: str,
    column_axis: str,
    first_row: int = 0,
    first_column: int = 0,
) -> dict[str, Any]:
    return {
        "title": title,
        "rowAxis": row_axis,
        "columnAxis": column_axis,
        "firstRow": first_row,
        "firstColumn": first_column,
        "values": encode(values),
    }


def _neighbor_data(trained: Trained, sentences: Sequence[ViewedSentence]) -> Iterator[dict[str, Any]]:
    """Yields, for each embedding table, the nearest neighbors of the sentences' tokens by their cosine."""
    names = EMBEDDINGS[trained.config.model.embeddings]
    # A decoder-only model has no separate table for source tokens.
    source_table = names.source if names.source in trained.params["embedding"] else names.target
    tables: dict[str, list[int]] = {source_table: [], names.target: []}
    for sentence in sentences:
        tables[source_table] += sentence.source
        tables[names.target] += sentence.target
    titles = ("embeddings",) if len(tables) == 1 else ("source embeddings", "target embeddings")
    for title, (table, tokens) in zip(titles, tables.items(), strict=True):
        yield {"title": title, "tokens": _neighbors(trained, table, list(dict.fromkeys(tokens)))}


def _neighbors(trained: Trained, table: str, tokens: Sequence[int]) -> list[dict[str, Any]]:
    vectors = np.asarray(trained.params["embedding"][table], np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = vectors[list(tokens)] @ vectors.T
    cosines[np.arange(len(tokens)), tokens] = -2  # a token is no neighbor of itself
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NUM_NEIGHBORS, len(vectors) - 1)]
    return [
        {
            "name": name,
            "nearest": [
                [neighbor, float(row[index])]
                for neighbor, index in zip(token_names(trained, order), order, strict=True)
            ],
        }
        for name, row, order in zip(token_names(trained, tokens), cosines, nearest, strict=True)
    ]
