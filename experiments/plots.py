"""The style of all figures, their file formats, and the curves of training and of speed.

A function that draws returns a matplotlib figure, and neither reads nor writes files.

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
        if not characters:
            break
        characters -= _glyphs(family)
    return sorted(characters)


@functools.cache
def _glyphs(family: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(INSTALLED_FONTS[family]).get_charmap()))


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


def single_panel() -> tuple[Figure, Axes]:
    """Returns a figure with one pair of axes."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def add_legend(axes: Axes) -> None:
    """Adds a legend: beside the axes if it has many entries, and in columns if it has very many."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 4:
        columns = -(-len(handles) // 20)
        size = 8 if columns == 1 else 5
        axes.figure.legend(handles, labels, loc="outside right upper", fontsize=size, ncols=columns)
    elif handles:
        axes.legend()


def learning_curve(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draws perplexity against steps, for training (with dropout) and for validation.

    If no record has a perplexity, draws the loss instead.
    """
    figure, axes = single_panel()
    value = _measured((records,))
    _draw_curves(axes, records, value)
    _label_curves(axes, value, title)
    return figure


def learning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Draws the learning curves of several runs, with a color for each run; see `learning_curve`."""
    figure, axes = single_panel()
    value = _measured(runs.values())
    for number, (name, records) in enumerate(runs.items()):
        _draw_curves(
            axes,
            records,
            value,
            f"{label(name, MAX_TITLE)}, ",
            color=f"C{number}",
            linestyle=line_style(number),
        )
    _label_curves(axes, value, title)
    return figure


def _draw_curves(
    axes: Axes, records: Sequence[Mapping[str, Any]], value: str, prefix: str = "", **style: Any
) -> None:
    """Draws the curves of a run for training and for validation. `prefix` begins their labels."""
    for kind, kind_style in CURVE_STYLES.items():
        if points := _points(records, kind, value):
            axes.plot(*zip(*points, strict=True), label=f"{prefix}{kind}", **kind_style, **style)


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
    add_legend(axes)


def speed_by_length(results: Mapping[str, Mapping[int, Mapping[str, Any]]], title: str) -> Figure:
    """Draws tokens per second against sentence length, with a line per variant and a band over all rounds."""
    figure, axes = single_panel()
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
