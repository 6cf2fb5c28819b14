"""Classifier-free guidance (Imagen section 2.2, eq. 2)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import expand
from imagen_jax.errors import UserError

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """How far a prediction is moved away from an unconditional (or weaker) one.

    Attributes:
      weight: w of eq. 2; 1 is no guidance.

    Raises:
      UserError: `weight` is not finite.
    """

    weight: float = 3.0

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not math.isfinite(self.weight):
            raise UserError(f"weight={self.weight} must be finite")

    def weight_at(self, logsnr: Array) -> Array:
        """The weight at each noise level: a scalar, or of the shape of `logsnr` `[B]`.

        Here it is the same at all noise levels.
        """
        del logsnr
        return jnp.asarray(self.weight, jnp.float32)


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
