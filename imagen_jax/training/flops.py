"""Model FLOPs: the operations of convolutions and matrix products that a step needs.

XLA's own count is of a compiled program: it omits multiplications with padding, includes
element-wise operations and counts the body of a loop once. This count is defined like
`torch.utils.flop_counter`: two operations for every multiply-add of a convolution (padding
included) or matrix product, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from imagen_jax.parallel.chips import chip_of
from imagen_jax.stage import Stage
from imagen_jax.training.step import make_loss
from imagen_jax.types import Array, Params, TextCond


def model_flops_per_image(
    stage: Stage, text_length: int, shape: tuple[int, int] | None = None
) -> int:
    """Matrix FLOPs of one picture in a training step, forward and backward.

    Recomputation by rematerialisation does not count, as is usual for the utilisation of model
    FLOPs (Chowdhery et al., PaLM, App. B). The frozen text encoder and the optimizer do not count
    either. The network is traced, not run.

    Args:
      stage: its network, resolution and crops.
      text_length: tokens of a caption, padding included.
      shape: (H, W) of the picture; by default that of a stage without buckets.
    """
    plain = stage.without_remat()
    loss_of = make_loss(plain)

    def loss(params: Params, x: Array, text: TextCond, key: Array) -> Array:
        return loss_of(params, x, text, key)[0].mean()

    side = stage.config.train_size
    key = jax.eval_shape(lambda: jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *(shape or (side, side)), 3), jnp.float32)
    text = TextCond(
        tokens=jax.ShapeDtypeStruct((1, text_length, stage.text_dim), jnp.float32),
        mask=jax.ShapeDtypeStruct((1, text_length), jnp.bool_),
    )
    return matrix_flops(jax.grad(loss), plain.abstract_params(), x, text, key)


class Utilization:
    """Utilisation of model FLOPs, for the log.

    Args:
      image_flops: see `model_flops_per_image`.
      mesh: the devices of the run.
    """

    def __init__(self, image_flops: int, mesh: Mesh):
        self._image_flops, self._devices = image_flops, mesh.size
        chip = chip_of(mesh.devices.flat[0].device_kind)
        self._peak = chip.bf16_flops if chip else None

    def values(self, images_per_second: float) -> dict[str, float]:
        """Values for the log; "mfu", in [0, 1], only if the bf16 peak of the devices is known."""
        rate = self._image_flops * images_per_second / self._devices
        values = {
            "model_flops_per_image": self._image_flops,
            "model_flops_per_second_per_device": rate,
        }
        return values | ({"mfu": rate / self._peak} if self._peak else {})


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
            # One branch of a conditional runs. (Loops without a fixed length count once: none here
            # contains a product.)
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
    # A dilated input (in the gradient of a strided convolution) has zeros between its elements,
    # which no library multiplies.
    dilation = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps * depth // dilation
