"""SDE-DPM-Solver++ 2M (Lu et al. 2022, section 5): a second-order solver of the reverse SDE."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_unit_interval
from imagen_jax.diffusion.samplers.base import Denoiser, Interval, draw_noise
from imagen_jax.diffusion.samplers.dpmpp import midpoint_difference
from imagen_jax.diffusion.samplers.exponential import History, width
from imagen_jax.diffusion.schedules import alpha_sigma

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SDEDPMSolver:
    """2M with fresh noise in each step; one call of the denoiser a step.

    Fresh noise corrects errors of earlier steps; with few steps the deterministic `DPMSolver` is
    closer.

    Attributes:
      eta: amount of fresh noise, in [0, 1]: 1 is the reverse SDE, 0 is `DPMSolver(order=2)`.

    Raises:
      UserError: `eta` outside [0, 1].
    """

    kind: ClassVar[str] = "sde_dpmpp"
    calls_per_step: ClassVar[int] = 1
    min_steps: ClassVar[int] = 2

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_unit_interval("eta", self.eta)

    def init(self, z: Array, grid: Array) -> History:
        """The x_hat of the step before."""
        return History.empty(z, grid, 1)

    def step(
        self, denoise: Denoiser, z: Array, carry: History, interval: Interval, keys: Array
    ) -> tuple[Array, Array, History]:
        """See `Sampler`."""
        logsnr_t, logsnr_s = interval.logsnr_t, interval.logsnr_s
        x_hat = denoise(z, jnp.full((z.shape[0],), logsnr_t)).x_hat
        h = width(logsnr_t, logsnr_s)
        difference = midpoint_difference(h, x_hat, carry.nodes(logsnr_t))
        middle = x_hat + jnp.where(carry.count > 0, difference, 0.0)
        noise = draw_noise(keys, interval.index, z.shape[1:])
        z_s = sde_step(z, middle, logsnr_t, logsnr_s, noise, self.eta)
        return z_s, x_hat, carry.pushed(x_hat, logsnr_t, h)


def sde_step(
    z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array, noise: Array, eta: Array | float
) -> Array:
    """The exact solution of the reverse SDE from t to s with a constant x_hat.

    Args:
      z, x_hat, noise: `[B, H, W, C]`.
      logsnr_t, logsnr_s: scalars, logsnr_s >= logsnr_t.
      eta: in [0, 1]; may be traced.

    Returns:
      z_s `[B, H, W, C]`.
    """
    h = width(logsnr_t, logsnr_s)
    _, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    kept = (sigma_s / sigma_t) * jnp.exp(-eta * h)
    toward_x = -alpha_s * jnp.expm1(-(1.0 + eta) * h)
    return kept * z + toward_x * x_hat + sigma_s * jnp.sqrt(-jnp.expm1(-2.0 * eta * h)) * noise
