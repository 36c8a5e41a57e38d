"""Floating-point operations of a function, as far as they are matrix products: nearly all of a model's."""

import math
from collections.abc import Callable

import jax
from jax.extend.core import jaxprs_in_params


def matmul_flops(function: Callable, *args, **kwargs) -> int:
    """Multiplications and additions in the matrix products of `function(*args)`, which is traced, not run.

    A product of [.., m, k] with [.., k, n] counts 2 m k n. A scan counts its body once an iteration, where
    XLA's own cost analysis counts it once; a branch counts as its longest.

    Args:
      function: what is counted.
      *args: arrays, or jax.ShapeDtypeStructs in their place.
      **kwargs: likewise.

    Raises:
      ValueError: a while loop, whose number of iterations is not known.
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def _count(jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> int:
    if equation.primitive.name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        shared = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
        return 2 * shared * math.prod(equation.outvars[0].aval.shape)
    inner = [_count(one) for one in jaxprs_in_params(equation.params)]
    if not any(inner):
        return 0
    if equation.primitive.name == "while":
        raise ValueError("a while loop with matrix products: the number of its iterations is not known")
    if equation.primitive.name == "cond":
        return max(inner)
    return equation.params["length"] * sum(inner) if equation.primitive.name == "scan" else sum(inner)
