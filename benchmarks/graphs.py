"""imagen-pytorch's U-Net made of this package's layers, for the comparison at an equal graph.

It runs wherever an `efficient_unet` runs: train step, sampler, text projection.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models import EfficientUNetConfig
from imagen_jax.models.attention import attend
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.ends import embed_levels
from imagen_jax.models.layers import FLOAT32, RSQRT2, ResBlock, conv3x3, dense
from imagen_jax.models.text_projection import TextFeatures
from imagen_jax.types import Array

# The widths, blocks and attention levels of `imagen_pytorch_peer.equal_unet`.
EQUAL_MODEL = EfficientUNetConfig(
    channels=(64, 128, 128),
    num_res_blocks=(2, 2, 2),
    strides=(2, 2, 2),
    self_attention=(False, True, True),
    text_attention=("none", "joint", "cross"),
    head_dim=32,
    embed_dim=256,
)


class _Level(nn.Module):
    """Residual blocks, on the way up each with a concatenated skip, then attention."""

    config: EfficientUNetConfig
    level: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, h: Array, skips: list[Array], embedding: Array, features: TextFeatures
    ) -> tuple[Array, list[Array]]:
        config, i, outputs = self.config, self.level, []
        for number in range(config.num_res_blocks[i]):
            if skips:
                h = jnp.concatenate([h, skips.pop() * RSQRT2], axis=-1)
            block = ResBlock(config.channels[i], self.dtype, name=f"block_{number}")
            h = block(h, embedding)
            outputs.append(h)
        text = None
        if self.name in features.keys:
            text = (features.keys[self.name], features.values[self.name], features.mask)
        h = attend(
            h,
            text,
            self_attention=config.self_attention[i],
            text_attention=config.text_attention[i],
            expansion=config.attention_expansion,
            head_dim=config.head_dim,
            shared_key_bias=config.shared_key_bias,
            dtype=self.dtype,
        )
        return h, [*outputs[1:], h]


def space_to_depth(x: Array) -> Array:
    """`[B, 2H, 2W, C]` to `[B, H, W, 4C]`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def depth_to_space(x: Array) -> Array:
    """`[B, H, W, 4C]` to `[B, 2H, 2W, C]`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


class EqualGraph(EfficientUNet):
    """The graph of imagen-pytorch's memory-efficient U-Net.

    One block before the first level and one after the last, both at full resolution. Down: pixel
    unshuffle and a 1x1 convolution. Up: 1x1 convolution, SiLU and pixel shuffle. Each level
    concatenates a skip of every block and of the attention, except of its first block. Two blocks
    in the middle; no norm before the last convolution.

    One difference remains: its middle blocks cross-attend to the text; here a cross-attention
    follows the self-attention of the lowest level on both sides.
    """

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
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        widths = config.channels
        embedding = embed_levels(config, logsnr, features, None)

        def block(h: Array, name: str) -> Array:
            return ResBlock(h.shape[-1], dtype, name=name)(h, embedding)

        h = block(conv3x3(widths[0], dtype, "stem")(z.astype(dtype)), "first_block")
        skips: list[Array] = []
        for i, width in enumerate(widths):
            h = dense(width, dtype, f"down_{i}_resample")(space_to_depth(h))
            h, outputs = _Level(config, i, dtype, name=f"down_{i}")(h, [], embedding, features)
            skips += outputs
        h = block(block(h, "middle_1"), "middle_2")
        for i in reversed(range(len(widths))):
            level_skips = [skips.pop() for _ in range(config.num_res_blocks[i])][::-1]
            h, _ = _Level(config, i, dtype, name=f"up_{i}")(h, level_skips, embedding, features)
            above = widths[i - 1] if i else widths[0]
            h = depth_to_space(nn.swish(dense(4 * above, dtype, f"up_{i}_resample")(h)))
        return conv3x3(3, FLOAT32, "head", zero=True)(block(h, "last_block"))
