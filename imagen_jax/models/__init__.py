"""Flax Linen networks: they know (z, logsnr, text, low_res, aug_level), not diffusion."""

from imagen_jax.models.build import (
    apply_model,
    build_model,
    init_params,
    project_text,
    total_stride,
)
from imagen_jax.models.text_projection import TextFeatures

__all__ = [
    "TextFeatures",
    "apply_model",
    "build_model",
    "init_params",
    "project_text",
    "total_stride",
]
