"""Figures of a trained model: attention, the effects of removed parts, masks, and positions.

Each function returns a matplotlib figure, and neither reads nor writes files.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from experiments.attention_views import AttentionView
from experiments.plots import MAX_INCHES, MAX_TITLE, label, line_style


def attention_map(
    weights: Float[np.ndarray, "h t s"],
    source: Sequence[str],
    target: Sequence[str],
    title: str,
    axis_names: tuple[str, str] = ("source token attended to", "target token"),
) -> Figure:
    """Draws the attention of each head in a panel. The darker a cell, the larger the attention weight.

    A figure that would be too large is scaled down. Labels that would then be unreadable are left out.
    """
    heads = len(weights)
    columns = min(heads, 4 if len(source) <= 12 else 2)
    rows = -(-heads // columns)
    size = (0.22 * len(source) + 0.3, 0.22 * len(target) + 0.9)
    source, target = list(map(label, source)), list(map(label, target))
    width = max(6, columns * size[0] + 1.2 + 0.07 * max(map(len, target)))
    height = rows * size[1] + 0.6 + 0.07 * max(map(len, source))
    scale = min(1.0, MAX_INCHES / max(width, height))
    is_labeled = scale > 0.5
    figure = Figure((width * scale, height * scale), layout="constrained" if is_labeled else None)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for head, axes in enumerate(panels):
        if head >= heads:
            axes.set_visible(False)
            continue
        image = axes.imshow(weights[head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"head {head + 1}", fontsize=9)
        axes.grid(False)
        if is_labeled:
            axes.set_xticks(range(len(source)), source, rotation=90, fontsize=7 * scale)
            axes.set_yticks(range(len(target)), target, fontsize=7 * scale)
    figure.supxlabel(axis_names[0], fontsize=9)
    figure.supylabel(axis_names[1], fontsize=9)
    figure.colorbar(image, ax=figure.axes, label="attention weight", fraction=0.02)
    figure.suptitle(title if is_labeled else f"{title} (too many tokens to label)", fontsize=11)
    return figure


def image_attention_map(
    image: UInt8[np.ndarray, "y x c"], weights: Float[np.ndarray, "layers h rows columns"], title: str
) -> Figure:
    """Draws an image and the attention of the class token to its patches.

    A row of panels has a layer: the mean of its heads, then each head. The brighter a patch, the larger its
    attention weight. Each panel has its own scale, whose largest weight stands above the panel.

    Args:
      image: the pixels, gray or color.
      weights: the attention weights of the patches.
      title: title of the figure.
    """
    num_layers, num_heads = weights.shape[:2]
    columns = min(num_heads, 12)  # more panels would be too small
    figure = Figure((1.35 * (columns + 2) + 0.6, 1.5 * num_layers + 0.7), layout="constrained")
    panels = figure.subplots(num_layers, columns + 2, squeeze=False)
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    for number, row in enumerate(panels):
        maps = [weights[number].mean(axis=0), *weights[number, :columns]]
        row[0].imshow(pixels, cmap="gray", vmin=0, vmax=255)
        row[0].set_ylabel(f"layer {number + 1}", fontsize=9)
        for place, (axes, values) in enumerate(zip(row[1:], maps, strict=True)):
            axes.imshow(values, cmap="viridis", vmin=0)
            name = f"head {place}" if place else "mean of heads"
            axes.set_title(f"{name}\n{values.max():.2f}", fontsize=7)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
    figure.suptitle(label(title, MAX_TITLE), fontsize=11)
    return figure


def ablation_map(cells: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draws the effect of removing each head and each sub-layer; the darker a cell, the larger the effect.

    Args:
      cells: nats per token as cells[sub-layer][column]; a column is the number of a head, or "all".
      title: title of the figure.
    """
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    values = np.array([[row.get(column, np.nan) for column in columns] for row in cells.values()])
    size = (max(6, 0.8 * len(columns) + 4), 0.35 * len(cells) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    limit = max(np.nanmax(np.abs(values)), 1e-3)
    scale = SymLogNorm(linthresh=limit / 100, vmin=-limit, vmax=limit)
    image = axes.imshow(values, cmap="RdBu_r", norm=scale, aspect="auto")
    figure.colorbar(image, ax=axes, label="added loss (nats per token)", format="%g")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            is_dark = abs(scale(value) - 0.5) > 0.35
            color = "white" if is_dark else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(columns)), [f"head {name}" if name.isdigit() else name for name in columns])
    axes.set_yticks(range(len(cells)), list(cells))
    axes.grid(False)
    axes.set_title(title)
    return figure


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


def position_bias(biases: Mapping[str, Float[np.ndarray, "h _"]], title: str) -> Figure:
    """Draws the bias of the logits by distance, in a panel for each item of `biases`."""
    rows, columns = math.ceil(len(biases) / 3), min(len(biases), 3)
    figure = Figure((4 * columns + 2, 3.2 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in panels[len(biases) :]:
        axes.set_visible(False)
    for axes, (name, bias) in zip(panels, biases.items(), strict=False):
        last = bias.shape[-1] // 2
        for head, values in enumerate(bias):
            axes.plot(range(-last, last + 1), values, line_style(head), label=f"head {head + 1}")
        axes.set(xlabel="position of key minus position of query", ylabel="bias")
        axes.set_title(name, fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(label(title, MAX_TITLE), fontsize=11)
    return figure


def _heat_map(figure: Figure, axes: Axes, values: Float[np.ndarray, "_ _"], name: str) -> None:
    limit = float(np.abs(values).max()) or 1.0
    image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label=name)
    axes.grid(False)
