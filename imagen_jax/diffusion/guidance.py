"""Classifier-free guidance (Imagen section 2.2, eq. 2)."""

from __future__ import annotations

import jax

from imagen_jax.diffusion.process import expand

Array = jax.Array


def guide(conditional: Array, unconditional: Array, w: Array | float) -> Array:
    """w conditional + (1 - w) unconditional; w = 1 is no guidance.

    eps, v and x_hat are affine in each other at a given z, and the two weights add up to one, so
    guiding any of them gives the same picture.

    Args:
      conditional, unconditional: `[B, H, W, C]` predictions of the same type at the same z.
      w: guidance weight, scalar or `[B]`, possibly traced.

    Returns:
      `[B, H, W, C]`.
    """
    w = expand(w, conditional.ndim)
    # Written as in the paper and not as u + w (c - u): at w = 1 this is exactly `conditional`.
    return w * conditional + (1.0 - w) * unconditional
