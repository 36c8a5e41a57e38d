"""Draws figures. Each function returns a matplotlib figure and neither reads nor writes files."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.dpi": 120,
        "font.family": ["DejaVu Sans"],
        "grid.alpha": 0.3,
        "legend.frameon": False,
    }
)


def png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def learning_curve(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draws perplexity against steps, for training (with dropout) and for validation.

    If a record has no perplexity, draws the loss instead.
    """
    figure, axes = _single_panel()
    has_perplexity = all("perplexity" in record for record in records)
    value = "perplexity" if has_perplexity else "loss"
    for kind, style in (("train", {"alpha": 0.8}), ("validation", {"marker": "o", "markersize": 4})):
        points = [(record["step"], record[value]) for record in records if record["kind"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), label=kind, **style)
    axes.set(xlabel="step", ylabel=value, title=title)
    if has_perplexity:
        axes.set(ylabel="perplexity per token", yscale="log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(2, 0.5), labelOnlyBase=False))
    axes.legend()
    return figure


def attention_map(
    weights: Float[np.ndarray, "h t s"], source: Sequence[str], target: Sequence[str], title: str
) -> Figure:
    """Draws the attention of each head in a panel. The darker a cell, the larger the attention weight."""
    heads = len(weights)
    columns = min(heads, 4 if len(source) <= 12 else 2)
    rows = -(-heads // columns)
    size = (0.22 * len(source) + 0.3, 0.22 * len(target) + 0.9)
    figure = Figure(figsize=(max(6, columns * size[0] + 1.5), rows * size[1] + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for head, axes in enumerate(panels):
        if head >= heads:
            axes.set_visible(False)
            continue
        image = axes.imshow(weights[head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"head {head + 1}", fontsize=9)
        axes.set_xticks(range(len(source)), source, rotation=90, fontsize=7)
        axes.set_yticks(range(len(target)), target, fontsize=7)
        axes.grid(False)
    figure.supxlabel("source token attended to", fontsize=9)
    figure.supylabel("target token", fontsize=9)
    figure.colorbar(image, ax=figure.axes, label="attention weight", fraction=0.02)
    figure.suptitle(title, fontsize=11)
    return figure


def comparison(table: Mapping[str, Mapping[str, Sequence[float]]], metric: str, title: str) -> Figure:
    """Draws the mean and standard deviation of each variant on each split, and every seed as a dot.

    Each variant has a color.

    Args:
      table: the scores, one per seed, as table[split][variant].
      metric: label of the vertical axis.
      title: title of the figure.
    """
    figure, axes = _single_panel()
    variants = list(next(iter(table.values())))
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        offset = (number - (len(variants) - 1) / 2) * width
        for place, split in enumerate(table):
            if scores := table[split][variant]:
                label = variant if place == 0 else None
                _bar(axes, place + offset, 0.9 * width, scores, color=f"C{number}", label=label)
    axes.set(ylabel=metric, title=title)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(table)), list(table))
    axes.grid(axis="x", visible=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def _bar(axes: Axes, x: float, width: float, scores: Sequence[float], color: str, label: str | None) -> None:
    axes.bar(x, np.mean(scores), width, color=color, alpha=0.35, label=label)
    if len(scores) > 1:
        axes.errorbar(x, np.mean(scores), np.std(scores, ddof=1), color=color, capsize=4)
    axes.plot([x] * len(scores), scores, "o", color=color, markersize=4)


def speed_by_length(results: Mapping[str, Mapping[int, Mapping[str, Any]]], title: str) -> Figure:
    """Draws tokens per second against sentence length, with a line per variant and a band over all rounds."""
    figure, axes = _single_panel()
    for variant, by_length in results.items():
        lengths = list(by_length)
        axes.plot(lengths, [row["tokens_per_second"] for row in by_length.values()], "o-", label=variant)
        bounds = zip(*(row["spread"] for row in by_length.values()), strict=True)
        axes.fill_between(lengths, *bounds, alpha=0.2)
    axes.set(xlabel="tokens per sentence", ylabel="target tokens per second", title=title, xscale="log")
    axes.set_xticks(lengths, map(str, lengths))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def scores_by_length(
    curves: Mapping[tuple[str, str], Mapping[int, Sequence[float]]], metric: str, title: str
) -> Figure:
    """Draws the mean and standard deviation over seeds against source length.

    Each variant has a color, and each split has a line style.

    Args:
      curves: the scores, one per seed, as curves[variant, split][upper end of a range of source lengths].
      metric: label of the vertical axis.
      title: title of the figure.
    """
    figure, axes = _single_panel()
    ends = sorted({end for curve in curves.values() for end in curve})
    variants, splits = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    for (variant, split), curve in curves.items():
        number = variants.index(variant)
        # Shifts the points of each variant sideways, because points with equal means would cover each other.
        places = [ends.index(end) + 0.06 * (number - (len(variants) - 1) / 2) for end in curve]
        axes.errorbar(
            places,
            [np.mean(scores) for scores in curve.values()],
            [np.std(scores, ddof=1) if len(scores) > 1 else 0 for scores in curve.values()],
            color=f"C{number}",
            linestyle=("-", "--", ":", "-.")[splits.index(split) % 4],
            marker="o",
            markersize=4,
            capsize=3,
            label=f"{variant}, {split}" if len(splits) > 1 else variant,
        )
    axes.set(xlabel="source tokens, up to", ylabel=metric, title=title)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(ends)), map(str, ends))
    axes.legend(fontsize=8)
    return figure


def _single_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()
