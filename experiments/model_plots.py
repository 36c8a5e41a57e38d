"""Draws positions and masks. Each function returns a matplotlib figure and neither reads nor writes files."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.attention_views import AttentionView
from experiments.plots import MAX_TITLE, label, line_style


def masks(views: Sequence[AttentionView]) -> Figure:
    """Draws the keys that each query may attend to, with a panel for each kind of attention."""
    widths = [0.17 * len(view.keys) + 1.5 for view in views]
    height = max(0.17 * len(view.queries) + 1.9 for view in views)
    size = (min(sum(widths) + 0.5, 40), min(height, 40))
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(views), squeeze=False, width_ratios=widths)[0]
    for axes, view in zip(panels, views, strict=True):
        axes.imshow(view.mask, cmap="Blues", vmin=0, vmax=1.5)
        axes.set_title(view.title, fontsize=9)
        axes.set_xticks(range(len(view.keys)), map(label, view.keys), rotation=90, fontsize=6)
        axes.set_yticks(range(len(view.queries)), map(label, view.queries), fontsize=6)
        axes.set_xlabel(view.key_axis, fontsize=8)
        axes.set_ylabel(view.query_axis, fontsize=8)
        axes.set_xticks(np.arange(len(view.keys)) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(view.queries)) - 0.5, minor=True)
        axes.tick_params(which="minor", length=0)
        axes.grid(False)
        axes.grid(which="minor", color="white", alpha=1)
    figure.suptitle("masks: a query may attend to the keys in blue", fontsize=11)
    return figure


def position_table(table: Float[np.ndarray, "t m"], title: str) -> Figure:
    """Draws the vector that is added at each position, a row per position."""
    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots()
    _heat_map(figure, axes, table, "value")
    axes.set(xlabel="channel", ylabel="position")
    figure.suptitle(label(title, MAX_TITLE), fontsize=11)
    return figure


def position_similarity(similarity: Float[np.ndarray, "t t"], name: str, title: str) -> Figure:
    """Draws the similarity of each pair of positions, and its mean and range by distance.

    Args:
      similarity: the similarities.
      name: the kind of similarity.
      title: title of the figure.
    """
    figure = Figure((10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _heat_map(figure, left, similarity, name)
    left.set(xlabel="position", ylabel="position")
    diagonals = [np.diagonal(similarity, distance) for distance in range(len(similarity))]
    distances = range(len(similarity))
    right.plot(distances, [values.mean() for values in diagonals])
    bounds = [[bound(values) for values in diagonals] for bound in (np.min, np.max)]
    right.fill_between(distances, *bounds, alpha=0.2)
    right.set(xlabel="distance", ylabel=f"{name}: mean and range")
    figure.suptitle(label(title, MAX_TITLE), fontsize=11)
    return figure


def position_bias(bias: Float[np.ndarray, "layers h _"], title: str) -> Figure:
    """Draws the bias of the logits by distance: a panel for each layer, or one for all equal layers."""
    is_shared = bool(np.all(bias == bias[0]))
    layers = bias[:1] if is_shared else bias
    rows, columns = math.ceil(len(layers) / 3), min(len(layers), 3)
    figure = Figure((4 * columns + 2, 3.2 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    last = bias.shape[-1] // 2
    for number, axes in enumerate(panels):
        if number >= len(layers):
            axes.set_visible(False)
            continue
        for head, values in enumerate(layers[number]):
            axes.plot(range(-last, last + 1), values, line_style(head), label=f"head {head + 1}")
        axes.set(xlabel="position of key minus position of query", ylabel="bias")
        axes.set_title("all layers" if is_shared else f"layer {number + 1}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(label(title, MAX_TITLE), fontsize=11)
    return figure


def _heat_map(figure: Figure, axes: Axes, values: Float[np.ndarray, "_ _"], name: str) -> None:
    limit = float(np.abs(values).max()) or 1.0
    image = axes.imshow(
        values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, label=name)
    axes.grid(False)
