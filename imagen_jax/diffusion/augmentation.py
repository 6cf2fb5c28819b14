"""Noise conditioning augmentation: noise on the low-resolution condition (Imagen section 2.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import diffuse, expand
from imagen_jax.diffusion.resize import upsample
from imagen_jax.diffusion.schedules import logsnr_cosine

Array = jax.Array


def low_res_condition(low_res: Array, factor: int, aug_level: Array, eps: Array) -> Array:
    """What a super-resolution network sees of a low-resolution picture (Fig. A.32).

    Training and sampling both use this function: noise at low resolution, then up-sampling.

    Args:
      low_res: `[B, h, w, C]` float32 clean pictures, in [-1, 1].
      factor: up-scaling factor of the stage.
      aug_level: `[B]` float32, in [0, 1].
      eps: `[B, h, w, C]` float32, standard normal noise.

    Returns:
      `[B, h * factor, w * factor, C]` float32.
    """
    return upsample(noise_low_res(low_res, aug_level, eps), factor)


def noise_low_res(low_res: Array, aug_level: Array, eps: Array) -> Array:
    """Noise conditioning augmentation: variance preserving noise at low resolution.

    The level is a time of the cosine schedule (the paper leaves the mapping open), so that 0.1,
    0.2 and 0.3 have signal-to-noise ratios of about 40, 9.5 and 3.9. The result is
    up-sampled afterwards, and the network receives the level as an input.

    Args:
      low_res: `[B, h, w, C]` float32, in [-1, 1].
      aug_level: `[B]` or scalar float32, in [0, 1]. Exactly 0 returns the clean picture.
      eps: `[B, h, w, C]` float32, standard normal noise.

    Returns:
      `[B, h, w, C]` float32.
    """
    noisy = diffuse(low_res, eps, logsnr_cosine(jnp.asarray(aug_level, jnp.float32)))
    return jnp.where(expand(aug_level, low_res.ndim) == 0.0, low_res, noisy)
