"""The first and the last layers, which both networks share."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.embeddings import LevelEmbedding, inv_cos
from imagen_jax.models.layers import FLOAT32, GroupNorm, InputMix, InputSkip, conv3x3
from imagen_jax.models.network import NetworkConfig
from imagen_jax.models.text_projection import TextFeatures
from imagen_jax.types import Array


def embed_levels(
    config: NetworkConfig, logsnr: Array, features: TextFeatures, aug_level: Array | None
) -> Array:
    """The embedding that modulates all blocks; call it inside a compact method.

    Args:
      config: widths.
      logsnr: `[B]`.
      features: their pooled text is added.
      aug_level: `[B]` in [0, 1], or None for a base stage.

    Returns:
      `[B, E]` f32: noise level, text and aug_level added up.
    """
    width, embed_dim = config.channels[0], config.embedding_width
    embedding = LevelEmbedding(width, embed_dim, name="time_embedding")(inv_cos(logsnr))
    embedding = embedding + features.pooled
    if aug_level is not None:
        embed_aug = LevelEmbedding(width, embed_dim, name="aug_embedding")
        embedding = embedding + embed_aug(aug_level)
    return embedding


def stem(width: int, dtype: jnp.dtype, inputs: Array) -> Array:
    """The first convolution: `[B, H, W, C]` to `[B, H, W, width]`; inside a compact method."""
    return conv3x3(width, dtype, "stem")(inputs.astype(dtype))


def head(config: NetworkConfig, h: Array, inputs: Array, embedding: Array, logsnr: Array) -> Array:
    """Norm and last convolution, which starts at zero; call it inside a compact method.

    Args:
      config: patch size and whether there is an input skip.
      h: `[B, H, W, C]`.
      inputs: `[B, H, W, n * 3 * patch_size^2]`, what the stem saw.
      embedding: `[B, E]` f32.
      logsnr: `[B]`.

    Returns:
      `[B, H, W, 3 * patch_size^2]` f32.
    """
    h = nn.swish(GroupNorm(FLOAT32, name="head_norm")(h))
    output = conv3x3(3 * config.patch_size**2, FLOAT32, "head", zero=True)(h)
    if config.input_skip == "mix":
        output = InputMix(name="input_mix")(output, inputs, embedding, logsnr)
    if config.input_skip == "add":
        output = InputSkip(name="input_skip")(output, inputs, embedding)
    return output
