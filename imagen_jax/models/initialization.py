"""Initialisation of parameters.

By default Linen draws every kernel separately. The program then has a copy of the random generator
for each kernel, which takes a CPU 0.13 s to compile: 13 s for each small U-Net. So the modules'
initialisers only give the standard deviation of a kernel, and `draw_kernels` multiplies it by noise
that is drawn in one call for all but the largest kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax.types import Array, Params

# Larger kernels are drawn separately: the shared draw cannot be sharded like its kernels.
SHARED_DRAW_MAX_SIZE = 2**21
# Standard deviation of a standard normal cut at +-2.
_TRUNCATED_STD = 0.87962566103423978


def fan_in_std(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """A Linen initialiser: 1 / sqrt(fan in) everywhere, for kernels `[..., in, out]` of one layer.

    These are standard deviations; `init_params` turns them into parameters.
    """
    del key
    return jnp.full(shape, math.prod(shape[:-1]) ** -0.5, dtype)


def scaled_fan_in_std(gain: float) -> Callable[..., Array]:
    """`fan_in_std` times `gain`."""
    return lambda *arguments: gain * fan_in_std(*arguments)


def fan_in_std_stacked(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """`fan_in_std` for kernels of several layers, stacked on the leading axis."""
    return jnp.broadcast_to(fan_in_std(key, shape[1:], dtype)[None], shape)


def draw_kernels(stds: Params, key: Array) -> Params:
    """Multiplies every leaf named "kernel" by unit-variance noise: a normal truncated at 2 sigma.

    Args:
      stds: parameters whose kernels hold their standard deviations (0 stays 0).
      key: a typed key.

    Returns:
      The same tree; other leaves (biases, norm scales) are unchanged.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(stds)
    is_kernel = [path[-1].key == "kernel" for path, _ in flat]
    shared = [
        k and x.size <= SHARED_DRAW_MAX_SIZE for k, (_, x) in zip(is_kernel, flat, strict=True)
    ]
    total = sum(x.size for s, (_, x) in zip(shared, flat, strict=True) if s)

    def draw(index: int, shape: tuple[int, ...]) -> Array:
        noise = jax.random.truncated_normal(jax.random.fold_in(key, index), -2.0, 2.0, shape)
        return noise / _TRUNCATED_STD

    pool, start, leaves = draw(len(flat), (total,)), 0, []
    for i, (_, x) in enumerate(flat):
        if shared[i]:
            x = x * pool[start : start + x.size].reshape(x.shape)
            start += x.size
        elif is_kernel[i]:
            x = x * draw(i, x.shape)
        leaves.append(x)
    return treedef.unflatten(leaves)
