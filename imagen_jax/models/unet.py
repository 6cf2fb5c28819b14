"""The base U-Net of App. F.1: ADM's "biggan" network with text in its attention."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.attention import attend
from imagen_jax.models.ends import embed_levels, head, stem
from imagen_jax.models.layers import POLICIES, ResBlock, fold, run_stacked
from imagen_jax.models.network import NetworkConfig
from imagen_jax.models.text_projection import TextFeatures, TextLayer
from imagen_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """Settings of the base U-Net, which has one block more a level on the way up than down (ADM).

    A level that attends does so after every residual block. The levels are joined by residual
    down- and up-sampling blocks. The lowest resolution always attends, in the middle.

    Raises:
      UserError: see `NetworkConfig`.
    """

    kind: ClassVar[str] = "unet"

    def level_stride(self, level: int) -> int:
        return self.patch_size * 2**level

    def attends(self, level: int) -> bool:
        return self.self_attention[level] or level == self.num_levels - 1

    def text_layers(self) -> tuple[TextLayer, ...]:
        """Grouped as their blocks are."""
        layers = []
        for level, groups in _level_groups(self).items():
            i = int(level.rpartition("_")[2])
            if self.text_attention[i] == "none":
                continue
            for name, count in groups:
                stack = count if name == "blocks" else 0
                layers.append(self.text_layer(f"{level}_{name}", i, stack))
        if self.text_attention[-1] != "none":
            layers.append(self.text_layer("middle", self.num_levels - 1))
        return tuple(layers)

    def make_network(self, *, low_res: bool, text_dim: int) -> UNet:
        return UNet(self, low_res=low_res, text_dim=text_dim)


def block_groups(h_width: int, skip_widths: list[int], width: int) -> list[tuple[str, int]]:
    """Names and lengths of the runs of equal blocks of a level.

    Args:
      h_width: channels that enter the first block, the skip not counted.
      skip_widths: channels of the skip that each block concatenates (0: none), one per block.
      width: channels of the level, which every block returns.

    Returns:
      "first" if its input differs from the others', "blocks", and "last" if its skip does; runs of
      length 0 are left out.
    """
    plain = width if skip_widths[0] else 0
    first = int(h_width != width)
    last = int(skip_widths[-1] != plain)
    groups = [("first", first), ("blocks", len(skip_widths) - first - last), ("last", last)]
    return [(name, count) for name, count in groups if count]


def _level_groups(config: UNetConfig) -> dict[str, list[tuple[str, int]]]:
    """The groups of every level in the order of the forward pass."""
    widths, groups = config.channels, {}
    before = (widths[0], *widths[:-1])
    for i, width in enumerate(widths):
        groups[f"down_{i}"] = block_groups(before[i], [0] * config.num_res_blocks[i], width)
    below = (*widths[1:], widths[-1])
    for i, width in reversed(list(enumerate(widths))):
        skips = [width] * config.num_res_blocks[i] + [before[i]]
        groups[f"up_{i}"] = block_groups(below[i], skips, width)
    return groups


class UNetBlock(nn.Module):
    """A residual block and the attention after it."""

    config: UNetConfig
    level: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        h: Array,
        skip: Array | None,
        embedding: Array,
        text: tuple[Array, Array, Array] | None,
        key: Array | None,
    ) -> Array:
        config = self.config
        if skip is not None:
            h = jnp.concatenate([h, skip], axis=-1)
        width = config.channels[self.level]
        h = ResBlock(width, self.dtype, config.dropout, name="res")(h, embedding, key)
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


class UNetLevel(nn.Module):
    """The blocks of one level on one side: `first`, the stacked `blocks`, `last`."""

    config: UNetConfig
    level: int
    groups: tuple[tuple[str, int], ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        h: Array,
        skips: list[Array | None],
        embedding: Array,
        features: TextFeatures,
        key: Array | None,
    ) -> tuple[Array, list[Array]]:
        """Returns the output of the last block and the outputs of all, one per entry of `skips`."""
        config, outputs = self.config, []
        remat = config.remat_of(self.level)
        block_class = UNetBlock
        if remat != "none":
            block_class = nn.remat(UNetBlock, policy=POLICIES[remat])
        arguments = {"config": config, "level": self.level, "dtype": self.dtype}
        for number, (group, count) in enumerate(self.groups):
            group_skips, skips = skips[:count], skips[count:]
            group_key = fold(key, number)
            layer = f"{self.name}_{group}"
            keys, values = features.keys.get(layer), features.values.get(layer)
            if group != "blocks":
                text = None if keys is None else (keys, values, features.mask)
                block = block_class(**arguments, name=group)
                h = block(h, group_skips[0], embedding, text, group_key)
                outputs.append(h)
                continue
            block = UNetBlock(**arguments, parent=None)

            def body(params, h, index, inputs, block=block, group_key=group_key):
                skip, text = inputs
                text = None if text is None else (*text, features.mask)
                return block.apply(
                    {"params": params}, h, skip, embedding, text, fold(group_key, index)
                )

            def init(key, block=block, h=h, skip=group_skips[0], keys=keys, values=values):
                text = None if keys is None else (keys[0], values[0], features.mask)
                return block.init(key, h, skip, embedding, text, None)["params"]

            texts = [None if keys is None else (keys[i], values[i]) for i in range(count)]
            inputs = list(zip(group_skips, texts, strict=True))
            h, group_outputs = run_stacked(
                self, group, body, init, h, inputs, scan=config.scan_blocks, remat=remat
            )
            outputs += group_outputs
        return h, outputs


class UNetMiddle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    config: UNetConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array, embedding: Array, features: TextFeatures, key: Array | None):
        config = self.config
        block = functools.partial(ResBlock, config.channels[-1], self.dtype, config.dropout)
        text = None
        if "middle" in features.keys:
            text = (features.keys["middle"], features.values["middle"], features.mask)
        h = block(name="res_1")(h, embedding, fold(key, 0))
        h = attend(
            h,
            text,
            self_attention=True,
            text_attention=config.text_attention[-1],
            expansion=config.attention_expansion,
            head_dim=config.head_dim,
            shared_key_bias=config.shared_key_bias,
            dtype=self.dtype,
        )
        return block(name="res_2")(h, embedding, fold(key, 1))


class UNet(nn.Module):
    """Predicts from a noisy picture; see `UNetConfig`.

    Stem, then per level blocks whose outputs are all kept as skips and a residual block that
    down-samples; middle; then per level one block more than on the way down, each with one skip
    concatenated, and a residual block that up-samples; head.
    """

    config: UNetConfig
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
        groups = _level_groups(config)
        embedding = embed_levels(config, logsnr, features, aug_level if self.low_res else None)
        inputs = jnp.concatenate([z, low_res], axis=-1) if self.low_res else z

        def level(name: str, i: int) -> UNetLevel:
            return UNetLevel(config, i, tuple(groups[name]), dtype, name=name)

        def resample(name: str, i: int, kind: str) -> ResBlock:
            return ResBlock(widths[i], dtype, config.dropout, resample=kind, name=name)

        keys = iter([fold(dropout_key, i) for i in range(4 * len(widths))])
        h = stem(widths[0], dtype, inputs)
        skips = [h]
        for i in range(len(widths)):
            no_skips = [None] * config.num_res_blocks[i]
            h, outputs = level(f"down_{i}", i)(h, no_skips, embedding, features, next(keys))
            skips += outputs
            if i < len(widths) - 1:
                h = resample(f"down_{i}_resample", i, "down")(h, embedding, next(keys))
                skips.append(h)
        h = UNetMiddle(config, dtype, name="middle")(h, embedding, features, next(keys))
        for i in reversed(range(len(widths))):
            level_skips = [skips.pop() for _ in range(config.num_res_blocks[i] + 1)]
            h, _ = level(f"up_{i}", i)(h, level_skips, embedding, features, next(keys))
            if i > 0:
                h = resample(f"up_{i}_resample", i, "up")(h, embedding, next(keys))
        return head(config, h, inputs, embedding, logsnr)
