"""Reads what a figure shows."""

import io

import numpy as np
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments import plots


def _name(text: Text) -> str:
    """The text without the word joiner that `label` puts before "_"."""
    return text.get_text().removeprefix("\N{WORD JOINER}")


def texts(figure: Figure) -> set[str]:
    """All texts of a figure."""
    return {_name(text) for text in figure.findobj(Text)}


def legend_names(axes: Axes) -> list[str]:
    """The names in a legend."""
    return [_name(text) for text in axes.get_legend().get_texts()]


def pixels(figure: Figure) -> np.ndarray:
    """The pixels of a figure as PNG: [y, x, channels]."""
    return image.imread(io.BytesIO(plots.png(figure)))
