"""Samplers: from noise to a picture with any denoiser (Imagen App. A). One file a sampler.

A new sampler is a file of its own and an entry in `SAMPLERS` here.
"""

from imagen_jax.diffusion.samplers.ancestral import Ancestral, ancestral_step
from imagen_jax.diffusion.samplers.base import (
    Denoiser,
    Hook,
    Interval,
    Prediction,
    Sampler,
    advance,
    draw_noise,
    sample,
    uniform_grid,
)
from imagen_jax.diffusion.samplers.ddim import DDIM, ddim_step

# The choices that a config may name by `kind`.
SAMPLERS = (DDIM, Ancestral)

__all__ = [
    "DDIM",
    "SAMPLERS",
    "Ancestral",
    "Denoiser",
    "Hook",
    "Interval",
    "Prediction",
    "Sampler",
    "advance",
    "ancestral_step",
    "ddim_step",
    "draw_noise",
    "sample",
    "uniform_grid",
]
