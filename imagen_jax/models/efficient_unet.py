"""The Efficient U-Net of App. B, F.2 and F.3."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.checks import check_at_least
from imagen_jax.errors import UserError
from imagen_jax.models.attention import attend
from imagen_jax.models.ends import embed_levels, head, stem
from imagen_jax.models.layers import (
    RSQRT2,
    ResBlock,
    conv3x3,
    fold,
    run_stacked,
    upsample_nearest,
)
from imagen_jax.models.network import NetworkConfig
from imagen_jax.models.text_projection import TextFeatures, TextLayer
from imagen_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientUNetConfig(NetworkConfig):
    """Settings of the Efficient U-Net, which has as many blocks on the way up as on the way down.

    Attributes:
      strides: down-sampling factor at the start of each level, 1 or 2.
      stem_channels: width of the first convolution (0: that of the first level).

    Raises:
      UserError: see `NetworkConfig`.
    """

    kind: ClassVar[str] = "efficient_unet"

    strides: tuple[int, ...] = (2, 2, 2)
    stem_channels: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_per_level("strides")
        if not set(self.strides) <= {1, 2}:
            raise UserError(f"strides={self.strides} must be 1 or 2 each")
        check_at_least("stem_channels", self.stem_channels, 0)

    def level_stride(self, level: int) -> int:
        return self.patch_size * math.prod(self.strides[: level + 1])

    def text_layers(self) -> tuple[TextLayer, ...]:
        """One a level on either side."""
        return tuple(
            self.text_layer(f"{side}_{i}", i)
            for side in ("down", "up")
            for i in range(self.num_levels)
            if self.text_attention[i] != "none"
        )

    def make_network(self, *, low_res: bool, text_dim: int) -> EfficientUNet:
        return EfficientUNet(self, low_res=low_res, text_dim=text_dim)


class EfficientLevel(nn.Module):
    """The residual blocks of a DBlock or UBlock (Fig. A.28, A.29), then its attention."""

    config: EfficientUNetConfig
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
        remat = config.remat_of(self.level)
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
            shared_key_bias=config.shared_key_bias,
            dtype=self.dtype,
        )


class EfficientUNet(nn.Module):
    """Predicts from a noisy picture; see `EfficientUNetConfig`.

    Stem at full resolution; each level first down-samples (strided convolution) and then runs its
    blocks; on the way up it joins its skip, runs as many blocks and up-samples last. All skips are
    joined by (h + skip) / sqrt(2), so that all blocks of a level are equal.

    Differs from Imagen (App. B, Fig. A.27 to A.30) in these points:
    - The embedding of noise level and text modulates the second norm of every block, as in ADM; the
      figures combine it once a level, before the blocks.
    - The output of the stem is a skip too, joined before the head.
    - Up-sampling is nearest neighbour and a 3x3 convolution, which leaves no checkerboard; the
      figures name a convolution with a stride.
    - The head is norm, swish and a 3x3 convolution that starts at zero, as in ADM; the figures have
      one dense layer.
    - Strided convolutions pad by (0, 1), as XLA's `SAME` does; where (1, 1) is padded, each
      output is centred one pixel further left and up.
    """

    config: EfficientUNetConfig
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
        embedding = embed_levels(config, logsnr, features, aug_level if self.low_res else None)
        inputs = jnp.concatenate([z, low_res], axis=-1) if self.low_res else z
        h = stem(stem_width, dtype, inputs)
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
        return head(config, h, inputs, embedding, logsnr)
