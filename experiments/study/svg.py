"""Draws charts as SVG for the page of a study.

The elements of variant n have the class `v<n>`. The page sets the color of each class, and hides the classes
of variants that the reader deselects.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

from experiments.pages import PALETTE

WIDTH, TOP, RIGHT, BOTTOM = 720, 12, 16, 46  # user units, which are pixels on a wide screen
DASHES = ("none", "7 3", "2 3")
MARGIN = 0.04  # empty share of an axis at each end


class Point(NamedTuple):
    """A value with its interval; `low` and `high` are NaN if there is no interval."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


class Series(NamedTuple):
    """The points of a variant.

    Attributes:
      name: the name of the variant.
      number: index of the variant, which selects color and dashes.
      points: the points, by increasing x.
    """

    name: str
    number: int
    points: Sequence[Point]


class Bar(NamedTuple):
    """A variant in a chart with one row per variant.

    Attributes:
      name: the name of the variant.
      number: index of the variant.
      mean: the mean, which is marked.
      low: lower end of the interval; NaN if there is no interval.
      high: upper end of the interval.
      dots: single values with their labels, such as the scores of the seeds.
    """

    name: str
    number: int
    mean: float
    low: float
    high: float
    dots: Sequence[tuple[str, float]] = ()


class Axis:
    """Scale from values to SVG user units, with tick marks."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool = False):
        """Makes an axis that covers the finite values, from `start` to `end` in user units."""
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        low, high = min(finite), max(finite)
        if low == high:
            margin = max(1, abs(low) / 1_000)
            low, high = (low / 2, high * 2) if log else (low - margin, high + margin)
        # On a logarithmic axis, 0 is at the lower end.
        self._map = (lambda value: math.log(max(value, low))) if log else float
        self._start, self._end = start, end
        if log:
            # In a short range, the logarithmic locator finds too few ticks.
            for locator in (LogLocator(subs=(1, 2, 5)), MaxNLocator(6)):
                self.ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
                if len(self.ticks) > 2:
                    break
            self._low, self._high = math.log(low), math.log(high)
        else:
            margin = MARGIN * (high - low)
            self._low, self._high = low - margin, high + margin
            ticks = MaxNLocator(6).tick_values(low, high)
            self.ticks = [float(tick) for tick in ticks if self._low <= tick <= self._high]

    def __call__(self, value: float) -> float:
        """Returns the coordinate of a value in user units."""
        share = (self._map(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def number_text(value: float) -> str:
    """Returns a number as text for a label."""
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{value:g}"


def xy_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> Markup:
    """Draws each series as a line with a band for the intervals, or as a single point with a bar.

    Args:
      series: the variants.
      x_label: label of the horizontal axis.
      y_label: label of the vertical axis.
      log_x: whether the horizontal axis is logarithmic.
      log_y: whether the vertical axis is logarithmic.
      x_ticks: values to mark on the horizontal axis; None for round values.
    """
    height, left = 340, 64
    points = [point for line in series for point in line.points]
    x = Axis([point.x for point in points], left, WIDTH - RIGHT, log_x)
    x.ticks = x.ticks if x_ticks is None else list(x_ticks)
    bounds = [value for point in points for value in (point.y, point.low, point.high)]
    y = Axis(bounds, height - BOTTOM, TOP, log_y)
    parts = [_grid(x, y, left, height), _labels(x_label, y_label, left, height)]
    for line in series:
        parts.append(_line(line, x, y))
    return _svg(parts, height, f"{y_label} against {x_label}")


def _line(line: Series, x: Axis, y: Axis) -> Markup:
    has_interval = [point for point in line.points if math.isfinite(point.low) and math.isfinite(point.high)]
    parts = []
    if len(line.points) > 1:
        if has_interval:
            upper = [f"{x(point.x):.1f},{y(point.high):.1f}" for point in has_interval]
            lower = [f"{x(point.x):.1f},{y(point.low):.1f}" for point in reversed(has_interval)]
            parts.append(Markup('<polygon class="band" points="{}"/>').format(" ".join(upper + lower)))
        places = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in line.points)
        dashes = DASHES[line.number // len(PALETTE) % len(DASHES)]
        parts.append(Markup('<polyline points="{}" stroke-dasharray="{}"/>').format(places, dashes))
    else:
        parts += [
            _rule(x(point.x), y(point.low), x(point.x), y(point.high), "interval") for point in has_interval
        ]
    for point in line.points:
        label = f"{line.name}: {number_text(point.x)}, {number_text(point.y)}"
        parts.append(_dot(x(point.x), y(point.y), 3, label))
    return Markup('<g class="v v{}">{}</g>').format(line.number, Markup("").join(parts))


def bar_chart(bars: Sequence[Bar], label: str, line_at: float | None = None) -> Markup:
    """Draws one row per variant: the mean with its interval, and dots for single values.

    Args:
      bars: the variants, from top to bottom.
      label: label of the horizontal axis.
      line_at: a value that is marked by a vertical line.
    """
    row, height = 26, TOP + BOTTOM + 26 * len(bars)
    left = min(240, 24 + 7 * max((len(bar.name) for bar in bars), default=0))
    values = [value for bar in bars for value in (bar.mean, bar.low, bar.high, *(dot for _, dot in bar.dots))]
    x = Axis([*values, *([] if line_at is None else [line_at])], left, WIDTH - RIGHT)
    parts = [_x_grid(x, height), _labels(label, "", left, height)]
    if line_at is not None:
        parts.append(_rule(x(line_at), TOP, x(line_at), height - BOTTOM, "zero"))
    for number, bar in enumerate(bars):
        y = TOP + row * (number + 0.5)
        name = bar.name if len(bar.name) <= 30 else f"{bar.name[:29]}…"
        marks = [Markup('<text x="{}" y="{:.1f}" class="end">{}</text>').format(left - 8, y + 4, name)]
        if math.isfinite(bar.low):
            marks.append(_rule(x(bar.low), y, x(bar.high), y, "interval"))
        marks += [_dot(x(dot), y, 3, f"{bar.name}, {text}: {number_text(dot)}") for text, dot in bar.dots]
        if math.isfinite(bar.mean):
            shape = '<path class="mean" d="M{:.1f} {:.1f}v14"><title>{}: {}</title></path>'
            marks.append(Markup(shape).format(x(bar.mean), y - 7, bar.name, number_text(bar.mean)))
        parts.append(Markup('<g class="v v{}">{}</g>').format(bar.number, Markup("").join(marks)))
    return _svg(parts, height, label)


def _dot(x: float, y: float, radius: float, title: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
        x, y, radius, title
    )


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(kind, x1, y1, x2, y2)


def _grid(x: Axis, y: Axis, left: float, height: float) -> Markup:
    parts = [_x_grid(x, height)]
    for tick in y.ticks:
        parts.append(_rule(left, y(tick), WIDTH - RIGHT, y(tick), "grid"))
        text = Markup('<text x="{}" y="{:.1f}" class="end">{}</text>')
        parts.append(text.format(left - 6, y(tick) + 4, number_text(tick)))
    return Markup("").join(parts)


def _x_grid(x: Axis, height: float) -> Markup:
    parts = []
    for tick in x.ticks:
        parts.append(_rule(x(tick), TOP, x(tick), height - BOTTOM, "grid"))
        text = Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>')
        parts.append(text.format(x(tick), height - BOTTOM + 16, number_text(tick)))
    return Markup("").join(parts)


def _labels(x_label: str, y_label: str, left: float, height: float) -> Markup:
    x = Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>').format(
        (left + WIDTH - RIGHT) / 2, height - 8, x_label
    )
    y = Markup('<text transform="translate(14 {:.1f}) rotate(-90)" class="middle">{}</text>')
    return x + y.format((TOP + height - BOTTOM) / 2, y_label)


def _svg(parts: Sequence[Markup], height: float, label: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )
