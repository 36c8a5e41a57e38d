"""Figures. Each function returns a matplotlib figure and knows nothing of files."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from transformer.training.metrics import Record

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


def learning_curve(records: Sequence[Record], title: str) -> Figure:
    """Perplexity a piece against steps, in training (dropout on) and in validation."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind, style in (("train", {"alpha": 0.8}), ("validation", {"marker": "o", "markersize": 4})):
        points = [(record["step"], record["perplexity"]) for record in records if record["kind"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), label=kind, **style)
    axes.set(xlabel="step", ylabel="perplexity a piece", yscale="log", title=title)
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks(matplotlib.ticker.LogFormatter(minor_thresholds=(2, 0.5), labelOnlyBase=False))
    axes.legend()
    return figure


def attention_map(weights: np.ndarray, source: Sequence[str], target: Sequence[str], title: str) -> Figure:
    """One panel a head: weights [h, t, s], darker where a target piece attends to a source piece."""
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
    figure.supxlabel("source piece attended to", fontsize=9)
    figure.supylabel("target piece", fontsize=9)
    figure.colorbar(image, ax=figure.axes, label="attention weight", fraction=0.02)
    figure.suptitle(title, fontsize=11)
    return figure


def comparison(table: dict[str, dict[str, Sequence[float]]], metric: str, title: str) -> Figure:
    """Mean and standard deviation of each variant (colour) on each split, every seed as a dot.

    Args:
      table: values[split][variant] = one number a seed.
      metric: label of the axis.
      title: of the figure.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    variants = list(next(iter(table.values())))
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        for place, split in enumerate(table):
            values = table[split][variant]
            x = place + (number - (len(variants) - 1) / 2) * width
            color = f"C{number}"
            if not len(values):
                continue
            label = variant if place == 0 else None
            axes.bar(x, np.mean(values), 0.9 * width, color=color, alpha=0.35, label=label)
            if len(values) > 1:
                axes.errorbar(x, np.mean(values), np.std(values, ddof=1), color=color, capsize=4)
            axes.plot([x] * len(values), values, "o", color=color, markersize=4)
    axes.set(ylabel=metric, title=title)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(table)), list(table))
    axes.grid(axis="x", visible=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def speed_by_length(results: dict[str, dict[int, dict]], title: str) -> Figure:
    """Tokens a second against sentence length, a line a variant; the band spans slowest and fastest round."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for variant, by_length in results.items():
        lengths = list(by_length)
        axes.plot(lengths, [one["tokens_per_second"] for one in by_length.values()], "o-", label=variant)
        axes.fill_between(
            lengths, *zip(*(one["spread"] for one in by_length.values()), strict=True), alpha=0.2
        )
    axes.set(xlabel="pieces of a sentence", ylabel="target tokens a second", title=title, xscale="log")
    axes.set_xticks(lengths, map(str, lengths))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def scores_by_length(
    curves: dict[tuple[str, str], dict[int, Sequence[float]]], metric: str, title: str
) -> Figure:
    """Mean and standard deviation over seeds against source length: a colour a variant, a dash a split.

    Args:
      curves: values[variant, split][upper end of a range of lengths] = one number a seed.
      metric: label of the axis.
      title: of the figure.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    ends = sorted({most for curve in curves.values() for most in curve})
    variants, splits = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    for (variant, split), curve in curves.items():
        number = variants.index(variant)
        # Side by side, where means are equal.
        places = [ends.index(most) + 0.06 * (number - (len(variants) - 1) / 2) for most in curve]
        axes.errorbar(
            places,
            [np.mean(values) for values in curve.values()],
            [np.std(values, ddof=1) if len(values) > 1 else 0 for values in curve.values()],
            color=f"C{number}",
            linestyle=("-", "--", ":", "-.")[splits.index(split) % 4],
            marker="o",
            markersize=4,
            capsize=3,
            label=f"{variant}, {split}" if len(splits) > 1 else variant,
        )
    axes.set(xlabel="source pieces, up to", ylabel=metric, title=title, ylim=(0, 105))
    axes.set_xticks(range(len(ends)), map(str, ends))
    axes.legend(fontsize=8)
    return figure
