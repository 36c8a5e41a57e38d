"""Floating-point operations of a function's matrix products, which are nearly all of a model's."""

import math
from collections.abc import Callable

import jax
from jax.extend.core import jaxprs_in_params


def matmul_flops(function: Callable, *args, **kwargs) -> int:
    """Multiplications and additions in the matrix products of `function(*args)`, which is traced, not run.

    A product of [.., m, k] with [.., k, n] counts 2 m k n. A scan counts its body once per iteration, unlike
    XLA's cost analysis, which counts it once; a conditional counts as its most expensive branch.

    Args:
      function: the function.
      *args: arrays, or `jax.ShapeDtypeStruct`s instead.
      **kwargs: likewise.

    Raises:
      ValueError: a while loop with matrix products, whose number of iterations is unknown.
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
            raise ValueError("a while loop has matrix products; its number of iterations is unknown")
        case "cond":
            return max(inner)
        case "scan":
            return equation.params["length"] * sum(inner)
    return sum(inner)
