"""Resizing of pictures. Training and sampling use the same filters; the paper names none."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError

Array = jax.Array


def downsample(x: Array, factor: int) -> Array:
    """The mean of every factor x factor box.

    A crop at multiples of `factor`, then reduced, equals the reduced image, then cropped.

    Args:
      x: `[B, H, W, C]` float32.
      factor: whole number that divides H and W.

    Returns:
      `[B, H / factor, W / factor, C]` float32.

    Raises:
      UserError: `factor` does not divide H and W.
    """
    _, h, w, _ = x.shape
    if factor < 1 or h % factor or w % factor:
        raise UserError(f"An image of {h}x{w} cannot be reduced by {factor}: it must divide both.")
    return resize(x, h // factor, w // factor)


def upsample(x: Array, factor: int) -> Array:
    """Bilinear enlargement with half-pixel centres; the border repeats the outermost pixel.

    Args:
      x: `[B, H, W, C]` float32.
      factor: whole number, at least 1.

    Returns:
      `[B, H * factor, W * factor, C]` float32.

    Raises:
      UserError: `factor` below 1.
    """
    if factor < 1:
        raise UserError(f"An image cannot be enlarged by {factor}: the factor must be at least 1.")
    return resize(x, x.shape[1] * factor, x.shape[2] * factor)


def resize(x: Array, height: int, width: int) -> Array:
    """Resizes each axis: box mean down by whole factors, bilinear up, antialiased otherwise.

    Args:
      x: `[B, H, W, C]` float32.
      height, width: the new size.

    Returns:
      `[B, height, width, C]` float32, in the range of `x` (to rounding).

    Raises:
      UserError: `height` or `width` below 1.
    """
    if height < 1 or width < 1:
        raise UserError(f"An image cannot be resized to {height}x{width}: both must be positive.")
    return _resize_axis(_resize_axis(x, height, 1), width, 2)


def _resize_axis(x: Array, size: int, axis: int) -> Array:
    old_size = x.shape[axis]
    if size == old_size:
        return x
    if old_size % size == 0:
        boxes = (*x.shape[:axis], size, old_size // size, *x.shape[axis + 1 :])
        return jnp.mean(x.reshape(boxes), axis=axis + 1)
    if size % old_size == 0:
        return _enlarge_axis(x, size // old_size, axis)
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    return jax.image.resize(x, shape, method="linear", antialias=True)


def _enlarge_axis(x: Array, factor: int, axis: int) -> Array:
    """Linear interpolation by phases: output i * factor + j lies between two neighbours of i.

    Equal to `jax.image.resize`, which multiplies by a dense matrix of weights for the same.
    """
    size = x.shape[axis]
    before = jnp.concatenate(
        [
            jax.lax.slice_in_dim(x, 0, 1, axis=axis),
            jax.lax.slice_in_dim(x, 0, size - 1, axis=axis),
        ],
        axis=axis,
    )
    after = jnp.concatenate(
        [
            jax.lax.slice_in_dim(x, 1, size, axis=axis),
            jax.lax.slice_in_dim(x, size - 1, size, axis=axis),
        ],
        axis=axis,
    )
    phases = []
    for j in range(factor):
        offset = (j + 0.5) / factor - 0.5  # of the output's centre from the centre of pixel i
        neighbour = before if offset < 0 else after
        phases.append((1.0 - abs(offset)) * x + abs(offset) * neighbour)
    enlarged = jnp.stack(phases, axis=axis + 1)
    return enlarged.reshape((*x.shape[:axis], size * factor, *x.shape[axis + 1 :]))
