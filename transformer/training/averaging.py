"""Mean of the weights of several checkpoints (paper, section 6.1)."""

from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import PyTree


def average(trees: Iterable[PyTree]) -> PyTree:
    """Returns the mean of trees of weights (paper, section 6.1), computed in float64.

    Args:
      trees: one or more trees. Besides the sum, only one tree is in memory at a time.
    """
    total, dtypes, count = None, None, 0
    for tree in trees:
        count += 1
        if total is None:
            dtypes = jax.tree.map(lambda leaf: leaf.dtype, tree)
            total = jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)
        else:
            total = jax.tree.map(lambda entry, leaf: np.add(entry, leaf, out=entry), total, tree)
    return jax.tree.map(lambda entry, dtype: (entry / count).astype(dtype), total, dtypes)
