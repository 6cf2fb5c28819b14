"""Embeddings of the noise level and of the augmentation level."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.layers import FLOAT32, dense
from imagen_jax.types import Array

LOGSNR_LIMIT = 20.0


def sinusoid(x: Array, width: int) -> Array:
    """`x` `[B]` to `[B, width]` f32: sines, then cosines, of `x` over wavelengths up to 10000.

    The divisor of the exponents is `width / 2 - 1`, as in the public code of Imagen's authors.
    """
    half = width // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / (half - 1)))
    angles = x.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def inv_cos(logsnr: Array) -> Array:
    """Maps logsnr, clipped to +-20, to its time in [0, 1] on the cosine schedule.

    Imagen gives the log-SNR to the network (App. A) and does not say how. This is the form in the
    public code of the same authors (progressive distillation).
    """
    logsnr = jnp.clip(logsnr.astype(jnp.float32), -LOGSNR_LIMIT, LOGSNR_LIMIT)
    return jnp.arctan(jnp.exp(-0.5 * logsnr)) / (0.5 * math.pi)


class LevelEmbedding(nn.Module):
    """Embeds a number in [0, 1] (time or aug_level) as `[B, embed_dim]` f32.

    Computed in float32: angles reach 1000, where bfloat16 has a spacing of 4.
    """

    width: int
    embed_dim: int

    @nn.compact
    def __call__(self, level: Array) -> Array:
        h = sinusoid(1000.0 * level.astype(jnp.float32), self.width)
        h = dense(self.embed_dim, FLOAT32, "dense_1")(h)
        return dense(self.embed_dim, FLOAT32, "dense_2")(nn.swish(h))
