"""Figures of the scores of a study.

Each function returns a matplotlib figure, and neither reads nor writes files.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots import add_legend, label, line_style, single_panel


def comparison(table: Mapping[str, Mapping[str, Sequence[float]]], metric: str, title: str) -> Figure:
    """Draws the mean of each variant on each split, its range over seeds, and every seed as a dot.

    Each variant has a color.

    Args:
      table: the scores, one per seed, as table[split][variant].
      metric: label of the vertical axis.
      title: title of the figure.
    """
    figure, axes = single_panel()
    variants = list(next(iter(table.values())))
    width, labeled = 0.8 / len(variants), set()
    for number, variant in enumerate(variants):
        offset = (number - (len(variants) - 1) / 2) * width
        for place, split in enumerate(table):
            if scores := table[split][variant]:
                name = None if variant in labeled else label(variant)
                labeled.add(variant)
                _bar(axes, place + offset, 0.9 * width, scores, f"C{number}", name)
    axes.set_ylabel(metric)
    axes.set_title(title, fontsize=10)
    _start_at_zero(axes)
    axes.set_xticks(range(len(table)), map(label, table))
    axes.grid(axis="x", visible=False)
    add_legend(axes)
    return figure


def scores_by_length(
    curves: Mapping[tuple[str, str], Mapping[int, Sequence[float]]], metric: str, title: str
) -> Figure:
    """Draws the mean over seeds, from the lowest to the highest seed, against source length.

    Each split has a panel, and each variant has a color.

    Args:
      curves: curves[variant, split][length] has one score per seed for the sentences in a range of source
        lengths; `length` is the upper end of the range.
      metric: label of the vertical axis.
      title: title of the figure.
    """
    variants, splits = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    figure = Figure(figsize=(3 + 4 * len(splits), 4), layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        ends = sorted({end for variant in variants for end in curves.get((variant, split), ())})
        for number, variant in enumerate(variants):
            curve = curves.get((variant, split), {})
            # Each variant is shifted sideways, because points with equal means would cover each other.
            offset = 0.5 * ((number + 0.5) / len(variants) - 0.5)
            axes.errorbar(
                [ends.index(end) + offset for end in curve],
                *_means_and_ranges(curve.values()),
                color=f"C{number}",
                linestyle=line_style(number),
                marker="o",
                markersize=4,
                label=label(variant),
            )
        axes.set(xlabel="source tokens, up to", title=label(split))
        axes.set_xticks(range(len(ends)), map(str, ends))
    panels[0].set_ylabel(metric)
    _start_at_zero(panels[0])
    figure.suptitle(title, fontsize=10)
    add_legend(panels[0])
    return figure


def _bar(axes: Axes, x: float, width: float, scores: Sequence[float], color: str, name: str | None) -> None:
    axes.bar(x, np.mean(scores), width, color=color, alpha=0.35, label=name)
    axes.errorbar(x, *_means_and_ranges([scores]), color=color)
    axes.plot([x] * len(scores), scores, "o", color=color, markersize=4)


def _means_and_ranges(groups: Iterable[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """Returns the mean of each group, and the distances from it to the lowest and to the highest score."""
    groups = list(groups)
    # Rounding may take the mean of equal scores beyond them, but Matplotlib accepts no negative distance.
    means = [float(np.clip(np.mean(scores), min(scores), max(scores))) for scores in groups]
    pairs = list(zip(means, groups, strict=True))
    return means, [
        [mean - min(scores) for mean, scores in pairs],
        [max(scores) - mean for mean, scores in pairs],
    ]


def _start_at_zero(axes: Axes) -> None:
    """Starts the vertical axis at 0 if no value is negative."""
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
