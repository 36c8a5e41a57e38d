"""Position schemes with two dimensions, for the patches of an image."""

import jax.numpy as jnp

from transformer.config import UserError
from transformer.model.position_scheme import PositionScheme, rotate
from transformer.model.position_tables import grid_table


class Sinusoidal2D(PositionScheme):
    """Sinusoids of the row in one half of the channels, and of the column in the other half.

    Each half has the paper's table of width d_model / 2 (Carion et al. 2020, appendix A.4). Nothing is added
    to the class token (as in the released code of He et al. 2022).

    Differs from the paper: positions have two dimensions.
    """

    inputs = ("grid",)

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.d_model % 4:
            raise UserError(
                f"model.d_model is {config.d_model}; it must be a multiple of 4: rows and columns each have "
                "pairs of sines and cosines"
            )

    def add(self, x, positions, length):
        table = grid_table(*self.grid, self.config.d_model)
        table[: self.grid.num_class_tokens] = 0
        return x + jnp.asarray(table, x.dtype)[positions]


class Rope2D(PositionScheme):
    """Half of the channels of queries and keys rotated by the row, the other half by the column.

    Each half is rotated as by `Rope` (axial RoPE; Heo et al. 2024, section 3.2), so the rows and columns of
    two patches affect a logit only through their differences. The class token is not rotated. Heo et al. set
    the base to 100, since an image has few rows; the default of `rope_base` is that of `Rope`.

    Differs from the paper: queries and keys are rotated; nothing is added to the embeddings.
    """

    inputs = ("grid",)

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.key_width % 4:
            raise UserError(
                f"model.d_k is {config.key_width}; it must be a multiple of 4, since 'rope_2d' rotates pairs "
                "of channels by the row and others by the column"
            )

    def transform(self, heads, positions, length):
        return rotate(heads, grid_table(*self.grid, heads.shape[-1], self.config.rope_base), positions)
