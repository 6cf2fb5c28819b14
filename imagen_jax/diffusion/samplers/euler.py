"""The Euler sampler of EDM (Karras et al. 2022, Algorithm 2 without its correction)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.samplers.base import Denoiser, Interval
from imagen_jax.diffusion.samplers.churn import check_churn, churn_noise
from imagen_jax.diffusion.samplers.exponential import first_order

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Euler:
    """Euler steps in sigma, with churn; one call of the denoiser a step.

    Without churn this is `DDIM(eta=0)`: the ODE is linear in sigma where x_hat is constant.

    Attributes:
      s_churn, s_min, s_max, s_noise: see `Heun`.

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "euler"
    calls_per_step: ClassVar[int] = 1
    min_steps: ClassVar[int] = 1

    s_churn: float = 0.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        check_churn(self.s_churn, self.s_min, self.s_max, self.s_noise)

    def init(self, z: Array, grid: Array) -> tuple[Array, Array]:
        """The number of steps and the log-SNR of the start."""
        del z
        return jnp.asarray(grid.shape[0] - 1, grid.dtype), grid[0]

    def step(
        self,
        denoise: Denoiser,
        z: Array,
        carry: tuple[Array, Array],
        interval: Interval,
        keys: Array,
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """See `Sampler`."""
        z, logsnr = churn_noise(
            z, interval, *carry, keys, self.s_churn, self.s_min, self.s_max, self.s_noise
        )
        x_hat = denoise(z, jnp.full((z.shape[0],), logsnr)).x_hat
        return first_order(z, x_hat, logsnr, interval.logsnr_s), x_hat, carry
