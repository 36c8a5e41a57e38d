"""Constants of the position schemes, in float64."""

import numpy as np


def sinusoid_table(length: int, d_model: int, base: float = 10_000.0) -> np.ndarray:
    """Returns the paper's table [length, d_model], in float64: sine in even, cosine in odd channels."""
    exponent = np.arange(0, d_model, 2) / d_model
    angle = np.arange(length)[:, None] / base ** exponent[None, :]
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, d_model)


def sinusoid_concat_table(length: int, d_model: int) -> np.ndarray:
    """Returns the table [length, d_model] of tensor2tensor, in float64: all sines, then all cosines."""
    pairs = d_model // 2
    exponent = np.arange(pairs) / max(pairs - 1, 1)
    angle = np.arange(length)[:, None] / 10_000 ** exponent[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def grid_table(
    rows: int, columns: int, num_class_tokens: int, width: int, base: float = 10_000.0
) -> np.ndarray:
    """Returns the sinusoids [tokens, width] of the rows and of the columns of a grid, in float64.

    The first half of the channels has the paper's table of the row, and the second half that of the column.
    The tokens are in raster order, after `num_class_tokens` tokens at row 0 and column 0.
    """
    places = np.divmod(np.arange(rows * columns), columns)
    indices = np.pad(places, ((0, 0), (num_class_tokens, 0)))
    table = sinusoid_table(max(rows, columns), width // 2, base)
    return np.concatenate([table[index] for index in indices], axis=1)


def t5_range_starts(num_ranges: int, max_distance: int) -> np.ndarray:
    """Returns the smallest distance of each range of T5 in one direction, without the first range."""
    exact = num_ranges // 2
    growth = (max_distance / exact) ** (np.arange(num_ranges - exact) / (num_ranges - exact))
    return np.concatenate([np.arange(1, exact), np.ceil(exact * growth - 1e-9)]).astype(np.int32)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns the slopes 2^(-8/h), 2^(-16/h), ... for h heads.

    If h is not a power of two, the slopes are those for the next smaller power of two, followed by every
    second slope for the next larger power of two.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([slopes, between])[:num_heads]
