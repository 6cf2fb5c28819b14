"""The settings that all networks share, and their checks."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, ClassVar

from imagen_jax.checks import check_at_least, check_choice, check_unit_interval
from imagen_jax.errors import UserError
from imagen_jax.models.text_projection import TextLayer

if TYPE_CHECKING:
    from flax import linen as nn

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full", "convs")
INPUT_SKIPS = ("none", "mix", "add")
TEXT_ATTENTION = ("none", "joint", "cross")

# No network that anyone trains comes near these. Beyond them a mistyped or hostile setting keeps
# the program busy for hours before the memory ends.
MAX_LEVELS = 16
MAX_BLOCKS = 128
MAX_CHANNELS = 2**17

# Attention keeps a float32 number for each pair of pixels and head. Above this size for a single
# picture (64x64 pixels with 8 heads take 0.5 GiB) no device trains it.
MAX_ATTENTION_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(abc.ABC):
    """Settings of a U-Net; tuples have one entry per level, highest resolution first.

    Attributes:
      channels: width of each level.
      num_res_blocks: residual blocks of each level on the way down.
      self_attention: whether the level attends over its pixels.
      text_attention: "none"; "joint" (text keys and values are concatenated to those of the
        level's self-attention); "cross" (a cross-attention of its own).
      head_dim: channels per attention head.
      attention_expansion: attention width over the level's channels (1 in the base, 2 in Fig.
        A.28).
      patch_size: patches of this many pixels a side are folded into channels before the network and
        unfolded after it, so that nothing runs at full resolution (1: off, as in the paper).
      input_skip: what the output gets from the noisy picture and the low-resolution condition:
        "none" (as in the paper); "mix" (for x-prediction, see `layers.InputMix`); "add" (of
        earlier versions, see `layers.InputSkip`).
      shared_key_bias: whether attention has a bias in its keys also where all keys share it, so
        that it changes nothing; for parameters of earlier versions.
      embed_dim: width of the time and pooled-text embedding (0: 4 x the first width).
      dropout: rate inside residual blocks, in [0, 1].
      dtype: compute dtype, "float32" or "bfloat16"; parameters are always float32.
      remat: what the backward pass computes again instead of storing it, one entry a level:
        "none", "full" (everything between the inputs of two blocks) or "convs" (the norms and
        activations; the results of convolutions and attention are stored). Empty: "full" with
        `scan_blocks`, else "none".
      scan_blocks: run equal consecutive blocks as a scan (faster compilation) instead of unrolled.
        The parameters and the result are the same. Not for CPUs, on which the gradient of a
        convolution inside a loop is ten times slower.

    Raises:
      UserError: a value is out of range, or two contradict each other.
    """

    kind: ClassVar[str]

    channels: tuple[int, ...] = (64, 128, 256)
    num_res_blocks: tuple[int, ...] = (2, 2, 2)
    self_attention: tuple[bool, ...] = (False, True, True)
    text_attention: tuple[str, ...] = ("none", "joint", "joint")
    head_dim: int = 64
    attention_expansion: int = 1
    patch_size: int = 1
    input_skip: str = "none"
    shared_key_bias: bool = False
    embed_dim: int = 0
    dropout: float = 0.0
    dtype: str = "float32"
    remat: tuple[str, ...] = ()
    scan_blocks: bool = False

    @abc.abstractmethod
    def level_stride(self, level: int) -> int:
        """The factor between the resolution of the picture and that of a level."""

    @abc.abstractmethod
    def text_layers(self) -> tuple[TextLayer, ...]:
        """The attention layers that see the text."""

    @abc.abstractmethod
    def make_network(self, *, low_res: bool, text_dim: int) -> nn.Module:
        """The Linen module.

        Args:
          low_res: whether it is conditioned on a low-resolution picture and an aug_level.
          text_dim: D of the text encoder's embeddings.
        """

    def text_layer(self, name: str, level: int, count: int = 0) -> TextLayer:
        """One of `text_layers`: the attention layers `name` of a level, `count` of them stacked."""
        return TextLayer(
            name,
            width=self.attention_expansion * self.channels[level],
            head_dim=self.head_dim,
            count=count,
            # Beside the keys of the pixels the text's have a bias of their own.
            key_bias=self.text_attention[level] == "joint" or self.shared_key_bias,
        )

    def attends(self, level: int) -> bool:
        """Whether a level attends over its pixels."""
        return self.self_attention[level]

    @property
    def num_levels(self) -> int:
        """The number of resolutions."""
        return len(self.channels)

    @property
    def total_stride(self) -> int:
        """The factor between the resolution of the picture and the network's lowest."""
        return self.level_stride(self.num_levels - 1)

    @property
    def embedding_width(self) -> int:
        """The width of the time and pooled-text embedding."""
        return self.embed_dim or 4 * self.channels[0]

    def remat_of(self, level: int) -> str:
        """What the backward pass of a level computes again: "none", "full" or "convs"."""
        if self.remat:
            return self.remat[level]
        return "full" if self.scan_blocks else "none"

    def __post_init__(self) -> None:
        if self.num_levels > MAX_LEVELS:
            raise UserError(
                f"channels has {self.num_levels} entries: a network has at most {MAX_LEVELS} levels"
            )
        self.check_per_level("num_res_blocks", "self_attention", "text_attention")
        if self.remat:
            self.check_per_level("remat")
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"channels={self.channels} must be one positive width per level")
        if self.channels[0] % 2 or self.channels[0] < 4:
            raise UserError(f"channels={self.channels}: the first must be even and at least 4")
        if min(self.num_res_blocks) < 1:
            raise UserError(f"num_res_blocks={self.num_res_blocks} must be at least 1 each")
        for field, most in (("channels", MAX_CHANNELS), ("num_res_blocks", MAX_BLOCKS)):
            if max(getattr(self, field)) > most:
                raise UserError(f"{field}={getattr(self, field)} must be at most {most} each")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("input_skip", self.input_skip, INPUT_SKIPS)
        check_unit_interval("dropout", self.dropout)
        for field in ("head_dim", "attention_expansion", "patch_size"):
            check_at_least(field, getattr(self, field), 1)
        check_at_least("embed_dim", self.embed_dim, 0)
        for i, kind in enumerate(self.remat):
            check_choice(f"remat[{i}]", kind, REMAT)
        for i, kind in enumerate(self.text_attention):
            check_choice(f"text_attention[{i}]", kind, TEXT_ATTENTION)
            self._check_attention(i)

    def check_per_level(self, *fields: str) -> None:
        """Raises UserError unless each of the fields has one entry per level."""
        for field in fields:
            value = getattr(self, field)
            if len(value) != self.num_levels:
                raise UserError(
                    f"{field}={value} has {len(value)} entries, channels={self.channels} has "
                    f"{self.num_levels}: give one entry per level"
                )

    def _check_attention(self, level: int) -> None:
        text_attention = self.text_attention[level]
        if text_attention == "joint" and not self.self_attention[level]:
            raise UserError(
                f"text_attention[{level}]='joint' needs self_attention[{level}]=True; without "
                "self-attention use 'cross'"
            )
        width = self.attention_expansion * self.channels[level]
        if (self.attends(level) or text_attention != "none") and width % self.head_dim:
            raise UserError(
                f"level {level} attends with a width of {width} (channels[{level}]="
                f"{self.channels[level]} times attention_expansion), which head_dim="
                f"{self.head_dim} does not divide: use a head_dim that divides it"
            )

    def check_resolution(self, resolution: int) -> None:
        """Checks that the network fits square pictures of side `resolution`.

        Raises:
          UserError: the resolution is not a multiple of the total stride, or attention at a level
            would need more memory than any device has.
        """
        stride = self.total_stride
        if resolution < 1 or resolution % stride:
            raise UserError(
                f"resolution {resolution} is not a multiple of the model's total stride {stride}: "
                "change the resolution or the number of levels"
            )
        for level, channels in enumerate(self.channels):
            side = resolution // self.level_stride(level)
            heads = self.attention_expansion * channels // self.head_dim
            size = 4 * heads * side**4
            if self.attends(level) and size > MAX_ATTENTION_BYTES:
                raise UserError(
                    f"level {level} would attend over {side}x{side} pixels: {size / 2**30:.1f} GiB "
                    f"of attention weights for one picture. Set self_attention[{level}]=False (and "
                    "text_attention to 'cross' or 'none'), or attend at a lower level"
                )
