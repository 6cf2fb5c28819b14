"""The networks of the paper (App. F)."""

from __future__ import annotations

from imagen_jax.models.efficient_unet import EfficientUNetConfig
from imagen_jax.models.unet import UNetConfig


def base64() -> UNetConfig:
    """The 64x64 base model, App. F.1: 2.4 B parameters with T5-XXL's 4096-wide text."""
    return UNetConfig(
        channels=(512, 1024, 1536, 2048),
        num_res_blocks=(3, 3, 3, 3),
        self_attention=(False, True, True, True),
        text_attention=("none", "joint", "joint", "joint"),
        head_dim=64,
        dtype="bfloat16",
        scan_blocks=True,
    )


def sr256() -> EfficientUNetConfig:
    """Super-resolution 64 to 256, App. F.2: the Efficient U-Net with 8 heads at 16x16."""
    return EfficientUNetConfig(
        channels=(128, 256, 512, 1024),
        num_res_blocks=(2, 4, 8, 8),
        strides=(2, 2, 2, 2),
        self_attention=(False, False, False, True),
        text_attention=("none", "none", "none", "joint"),
        head_dim=256,
        attention_expansion=2,
        dtype="bfloat16",
        scan_blocks=True,
    )


def sr1024() -> EfficientUNetConfig:
    """Super-resolution 256 to 1024, App. F.3: that of F.2 with text cross-attention only.

    The paper's 400 M parameters do not follow from its configuration: leaving the self-attention
    out of F.2's only attention level removes 2 % of its parameters.
    """
    return EfficientUNetConfig(
        channels=(128, 256, 512, 1024),
        num_res_blocks=(2, 4, 8, 8),
        strides=(2, 2, 2, 2),
        self_attention=(False, False, False, False),
        text_attention=("none", "none", "none", "cross"),
        head_dim=256,
        attention_expansion=2,
        dtype="bfloat16",
        scan_blocks=True,
    )
