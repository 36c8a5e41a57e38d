"""Draws figures. Each function returns a matplotlib figure and neither reads nor writes files.

Text is drawn literally: $ does not begin a formula. Several fonts are tried for a character, in turn, until
one has a glyph for it.
"""

import functools
import io
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text

# Fonts for scripts that DejaVu Sans, which ships with matplotlib, does not have.
FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Thai",
    "Noto Sans Devanagari",
    "Noto Sans",
    "Arial Unicode MS",
    "WenQuanYi Zen Hei",
    "IPAexGothic",
    "NanumGothic",
    "Hiragino Sans",
    "Malgun Gothic",
    "Microsoft YaHei",
)
INSTALLED_FONTS = {font.name: font.fname for font in reversed(fontManager.ttflist)}
FAMILIES = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in INSTALLED_FONTS)]
MAX_INCHES = 60  # longest side of a figure, 7,200 pixels
MAX_LABEL = 30  # characters
MAX_TITLE = 80
LINE_STYLES = ("-", "--", ":", "-.")
CURVE_STYLES = {"train": {"alpha": 0.8}, "validation": {"marker": "o", "markersize": 4}}

matplotlib.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.dpi": 120,
        "font.family": FAMILIES,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "transformer",  # equal figures are equal files
        "text.parse_math": False,
    }
)


def png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file.

    A character for which no installed font has a glyph is drawn as a box, and a line on standard error names
    the missing characters.
    """
    return _saved(figure, "png")


def svg(figure: Figure) -> bytes:
    """Returns a figure as the content of an SVG file, whose text stays text; see `png`."""
    return _saved(figure, "svg", metadata={"Date": None})


FORMATS = {"png": png, "svg": svg}


def _saved(figure: Figure, name: str, **options: Any) -> bytes:
    if missing := missing_glyphs("".join(text.get_text() for text in figure.findobj(Text))):
        shown = " ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
        print(
            f"no installed font can draw {shown}; install one, such as fonts-noto-cjk or fonts-noto",
            file=sys.stderr,
        )
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format=name, **options)
    return file.getvalue()


def missing_glyphs(text: str) -> list[str]:
    """Returns the characters of a text that no font of `FAMILIES` can draw."""
    characters = {character for character in text if not character.isspace()}
    for family in FAMILIES:
        if characters := {character for character in characters if ord(character) not in _glyphs(family)}:
            continue
        break
    return sorted(characters)


@functools.cache
def _glyphs(family: str) -> frozenset[int]:
    return frozenset(get_font(INSTALLED_FONTS[family]).get_charmap())


def visible(text: str, allowed: str = "") -> str:
    """Returns `text` with codes such as <U+0009> in place of control characters that are not in `allowed`."""
    return "".join(c if c.isprintable() or c in allowed else f"<U+{ord(c):04X}>" for c in text)


def label(text: str, max_characters: int = MAX_LABEL) -> str:
    """Returns a text as a label: see `visible`, and cut to at most `max_characters` characters.

    matplotlib leaves a label that begins with "_" out of the legend; a word joiner before "_" prevents this.
    """
    shown = visible(text)
    shown = shown if len(shown) <= max_characters else f"{shown[: max_characters - 1]}…"
    return f"\N{WORD JOINER}{shown}" if shown.startswith("_") else shown


def line_style(number: int) -> str:
    """Returns the line style of a curve, by its number from 0. The colors repeat after ten curves."""
    return LINE_STYLES[number // 10 % len(LINE_STYLES)]


def learning_curve(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draws perplexity against steps, for training (with dropout) and for validation.

    If no record has a perplexity, draws the loss instead.
    """
    figure, axes = _single_panel()
    value = _measured((records,))
    for kind, style in CURVE_STYLES.items():
        if points := _points(records, kind, value):
            axes.plot(*zip(*points, strict=True), label=kind, **style)
    _label_curves(axes, value, title)
    axes.legend()
    return figure


def learning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Draws the learning curves of several runs, with a color for each run; see `learning_curve`."""
    figure, axes = _single_panel()
    value = _measured(runs.values())
    for number, (name, records) in enumerate(runs.items()):
        for kind, style in CURVE_STYLES.items():
            if points := _points(records, kind, value):
                style = style | {"color": f"C{number}", "linestyle": line_style(number)}
                axes.plot(*zip(*points, strict=True), label=label(f"{name}, {kind}", MAX_TITLE), **style)
    _label_curves(axes, value, title)
    _add_legend(axes)
    return figure


def _measured(runs: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """Returns the measured value that all runs have."""
    has_perplexity = all(any("perplexity" in record for record in records) for records in runs)
    return "perplexity" if has_perplexity else "loss"


def _points(records: Sequence[Mapping[str, Any]], kind: str, value: str) -> list[tuple[int, float]]:
    return [
        (record["step"], record[value])
        for record in records
        if record["kind"] == kind and value in record  # a skipped or infinite loss is not drawn
    ]


def _label_curves(axes: Axes, value: str, title: str) -> None:
    axes.set(xlabel="step", ylabel=value, title=title)
    if value == "perplexity":
        axes.set(ylabel="perplexity per token", yscale="log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(2, 0.5), labelOnlyBase=False))


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
      image: the pixels, grey or colour.
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
    """Draws the effect of masking each head and each sub-layer; the darker a cell, the larger the effect.

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
    scale = matplotlib.colors.SymLogNorm(linthresh=limit / 100, vmin=-limit, vmax=limit)
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


def comparison(table: Mapping[str, Mapping[str, Sequence[float]]], metric: str, title: str) -> Figure:
    """Draws the mean of each variant on each split, its range over seeds, and every seed as a dot.

    Each variant has a color.

    Args:
      table: the scores, one per seed, as table[split][variant].
      metric: label of the vertical axis.
      title: title of the figure.
    """
    figure, axes = _single_panel()
    variants = list(next(iter(table.values())))
    width, labeled = 0.8 / len(variants), set()
    for number, variant in enumerate(variants):
        offset = (number - (len(variants) - 1) / 2) * width
        for place, split in enumerate(table):
            if scores := table[split][variant]:
                name = None if variant in labeled else label(variant)
                labeled.add(variant)
                _bar(axes, place + offset, 0.9 * width, scores, color=f"C{number}", label=name)
    axes.set_ylabel(metric)
    axes.set_title(title, fontsize=10)
    _start_at_zero(axes)
    axes.set_xticks(range(len(table)), map(label, table))
    axes.grid(axis="x", visible=False)
    _add_legend(axes)
    return figure


def _start_at_zero(axes: Axes) -> None:
    """Starts the vertical axis at 0 if no value is negative."""
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)


def _add_legend(axes: Axes) -> None:
    """Adds a legend: beside the axes if it has many entries, and in columns if it has very many."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 4:
        columns = -(-len(handles) // 20)
        size = 8 if columns == 1 else 5
        axes.figure.legend(handles, labels, loc="outside right upper", fontsize=size, ncols=columns)
    elif handles:
        axes.legend()


def _bar(axes: Axes, x: float, width: float, scores: Sequence[float], color: str, label: str | None) -> None:
    axes.bar(x, np.mean(scores), width, color=color, alpha=0.35, label=label)
    axes.errorbar(x, *_means_and_ranges([scores]), color=color)
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
    _add_legend(panels[0])
    return figure


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


def _single_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()
