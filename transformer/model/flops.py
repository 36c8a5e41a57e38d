"""Floating-point operations of matrix products, which are nearly all operations of a model."""

import math
from collections.abc import Callable

import jax
from jax.extend.core import jaxprs_in_params


def matmul_flops(function: Callable, *args, **kwargs) -> int:
    """Counts the multiplications and additions in the matrix products of a function, without running it.

    A product of [.., m, k] with [.., k, n] counts 2 m k n. A conditional counts as its most expensive branch.
    The body of a scan counts once per iteration, whereas XLA's cost analysis counts it only once.

    Args:
      function: the function.
      *args: arrays, or their shapes as `jax.ShapeDtypeStruct`.
      **kwargs: arrays, or their shapes as `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: a while loop has matrix products, so their number is unknown.
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    if equation.primitive.name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    inner = [_count(jaxpr) for jaxpr in jaxprs_in_params(equation.params)]
    if not any(inner):
        return 0
    match equation.primitive.name:
        case "while":
            raise ValueError("a while loop has an unknown number of matrix products; use a scan")
        case "cond":
            return max(inner)
        case "scan":
            return equation.params["length"] * sum(inner)
    return sum(inner)
