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
from imagen_jax.diffusion.samplers.dpmpp import DPMSolver
from imagen_jax.diffusion.samplers.euler import Euler
from imagen_jax.diffusion.samplers.heun import Heun
from imagen_jax.diffusion.samplers.sde_dpmpp import SDEDPMSolver
from imagen_jax.diffusion.samplers.unipc import UniPC

# The choices that a config may name by `kind`.
SAMPLERS = (DDIM, Ancestral, DPMSolver, SDEDPMSolver, Heun, Euler, UniPC)

__all__ = [
    "DDIM",
    "SAMPLERS",
    "Ancestral",
    "DPMSolver",
    "Denoiser",
    "Euler",
    "Heun",
    "Hook",
    "Interval",
    "Prediction",
    "SDEDPMSolver",
    "Sampler",
    "UniPC",
    "advance",
    "ancestral_step",
    "ddim_step",
    "draw_noise",
    "sample",
    "uniform_grid",
]
