"""Flax Linen networks: they know (z, logsnr, text, low_res, aug_level), not diffusion."""

from imagen_jax.models.build import apply_network, init_params, project_text
from imagen_jax.models.efficient_unet import EfficientUNetConfig
from imagen_jax.models.network import NetworkConfig
from imagen_jax.models.text_projection import TextFeatures
from imagen_jax.models.unet import UNetConfig

# The choices that a config may name by `kind`.
NETWORKS = (UNetConfig, EfficientUNetConfig)

__all__ = [
    "NETWORKS",
    "EfficientUNetConfig",
    "NetworkConfig",
    "TextFeatures",
    "UNetConfig",
    "apply_network",
    "init_params",
    "project_text",
]
