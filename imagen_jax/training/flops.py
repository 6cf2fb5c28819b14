"""Counts the floating-point operations of convolutions and matrix products in a JAX function.

XLA's own count is of a compiled program: it leaves out multiplications with padding, adds
everything element by element and counts the body of a loop once. This one is defined like
`torch.utils.flop_counter`: two operations for every multiply-add of a convolution (padding
included) or matrix product, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matrix_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of `function(*arguments)`; arguments may be `ShapeDtypeStruct`s."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        parameters = equation.params
        if equation.primitive.name == "conv_general_dilated":
            total += _convolution(equation)
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        else:
            inner = [_count(body) for body in _bodies(parameters)]
            # Of the branches of a condition one runs. (Loops without a fixed length count once:
            # none here holds a product.)
            inside = max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
            total += inside * parameters.get("length", 1)
    return total


def _bodies(parameters: dict[str, Any]) -> list[Jaxpr]:
    values = [
        item
        for value in parameters.values()
        for item in (value if isinstance(value, (tuple, list)) else (value,))
    ]
    closed = [value.jaxpr for value in values if isinstance(value, ClosedJaxpr)]
    return closed + [value for value in values if isinstance(value, Jaxpr)]


def _convolution(equation: Any) -> int:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    depth = kernel[numbers.rhs_spec[1]]  # of one group
    # Where the input is dilated (the gradient of a strided convolution), the rest are zeros that
    # no library multiplies.
    dilation = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps * depth // dilation
