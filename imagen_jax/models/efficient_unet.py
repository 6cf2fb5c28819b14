"""The Efficient U-Net of App. B, F.2 and F.3."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.config import ModelConfig
from imagen_jax.models.attention import attend
from imagen_jax.models.embeddings import LevelEmbedding, inv_cos
from imagen_jax.models.layers import (
    FLOAT32,
    RSQRT2,
    GroupNorm,
    InputSkip,
    ResBlock,
    conv3x3,
    fold,
    remat_of,
    run_stacked,
    upsample_nearest,
)
from imagen_jax.models.text_projection import TextFeatures, TextLayer
from imagen_jax.types import Array


def text_layers(config: ModelConfig) -> tuple[TextLayer, ...]:
    """The attention layers that see the text: one a level on either side."""
    return tuple(
        TextLayer(f"{side}_{i}", config.attention_expansion * width, config.head_dim)
        for side in ("down", "up")
        for i, width in enumerate(config.channels)
        if config.text_attention[i] != "none"
    )


class EfficientLevel(nn.Module):
    """The residual blocks of a DBlock or UBlock (Fig. A.28, A.29), then its attention."""

    config: ModelConfig
    level: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, h: Array, embedding: Array, features: TextFeatures, key: Array | None
    ) -> Array:
        config = self.config
        block = ResBlock(h.shape[-1], self.dtype, config.dropout, scaled=True, parent=None)

        def body(params, h, index, _):
            return block.apply({"params": params}, h, embedding, fold(key, index))

        def init(key):
            return block.init(key, h, embedding)["params"]

        no_inputs = [None] * config.num_res_blocks[self.level]
        remat = remat_of(config, self.level)
        h, _ = run_stacked(
            self, "blocks", body, init, h, no_inputs, scan=config.scan_blocks, remat=remat
        )
        text = None
        if self.name in features.keys:
            text = (features.keys[self.name], features.values[self.name], features.mask)
        return attend(
            h,
            text,
            self_attention=config.self_attention[self.level],
            text_attention=config.text_attention[self.level],
            expansion=config.attention_expansion,
            head_dim=config.head_dim,
            dtype=self.dtype,
        )


class EfficientUNet(nn.Module):
    """Predicts from a noisy picture; see `imagen_jax.models.build_model`.

    Stem at full resolution; each level first down-samples (strided convolution) and then runs its
    blocks; on the way up it joins its skip, runs as many blocks and up-samples last. All skips are
    joined by (h + skip) / sqrt(2), so that all blocks of a level are equal.
    """

    config: ModelConfig
    resolution: int
    low_res: bool
    text_dim: int

    @nn.compact
    def __call__(
        self,
        z: Array,
        logsnr: Array,
        features: TextFeatures,
        low_res: Array | None = None,
        aug_level: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        widths = config.channels
        stem_width = config.stem_channels or widths[0]
        embed_dim = config.embed_dim or 4 * widths[0]
        embedding = LevelEmbedding(widths[0], embed_dim, name="time_embedding")(inv_cos(logsnr))
        embedding = embedding + features.pooled
        if self.low_res:
            embed_aug = LevelEmbedding(widths[0], embed_dim, name="aug_embedding")
            embedding = embedding + embed_aug(aug_level)
            z = jnp.concatenate([z, low_res], axis=-1)

        h = conv3x3(stem_width, dtype, "stem")(z.astype(dtype))
        skips = [h]
        for i, width in enumerate(widths):
            stride = config.strides[i]
            h = conv3x3(width, dtype, f"down_{i}_resample", stride=stride)(h)
            level = EfficientLevel(config, i, dtype, name=f"down_{i}")
            h = level(h, embedding, features, fold(dropout_key, 2 * i))
            skips.append(h)
        for i in reversed(range(len(widths))):
            skip = skips.pop()
            if i < len(widths) - 1:  # the lowest UBlock starts from its own DBlock's output
                h = (h + skip) * RSQRT2
            level = EfficientLevel(config, i, dtype, name=f"up_{i}")
            h = level(h, embedding, features, fold(dropout_key, 2 * i + 1))
            if config.strides[i] == 2:
                h = upsample_nearest(h)
            h = conv3x3(widths[i - 1] if i else stem_width, dtype, f"up_{i}_resample")(h)
        h = (h + skips.pop()) * RSQRT2
        h = nn.swish(GroupNorm(FLOAT32, name="head_norm")(h))
        answer = conv3x3(3 * config.patch_size**2, FLOAT32, "head", zero=True)(h)
        if config.input_skip:
            answer = InputSkip(name="input_skip")(answer, z, embedding)
        return answer
