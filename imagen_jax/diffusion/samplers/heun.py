"""The sampler of EDM: Heun's method in sigma, with churn (Karras et al. 2022, Algorithm 2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.samplers.base import Denoiser, Interval
from imagen_jax.diffusion.samplers.churn import check_churn, churn_noise
from imagen_jax.diffusion.samplers.exponential import first_order, width
from imagen_jax.diffusion.schedules import alpha_sigma

Array = jax.Array

# The correction grows as e^h. Where sigma falls by more than e^4 = 55 in one step, as in the first
# step of a uniform grid, it overshoots by more than it corrects, and the step is Euler's.
_WIDEST = 4.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's method of order 2; two calls of the denoiser a step: 20 steps are 40 calls.

    Made for `Karras` grids. Sigma is the noise level of EDM, e^(-logsnr / 2).

    Attributes:
      s_churn: amount of fresh noise, at least 0; in each step sigma first rises by the factor
        1 + min(s_churn / num_steps, 0.414). 0 is deterministic.
      s_min, s_max: the sigmas between which there is churn. The defaults are the paper's for
        ImageNet-64, for which s_churn = 40 was best.
      s_noise: factor of the fresh noise; slightly above 1 makes up for what a network removes too
        much.

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "heun"
    calls_per_step: ClassVar[int] = 2
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
        """See `Sampler`. The x_hat is that of the first call, which the last step ends with."""
        z, logsnr_t = churn_noise(
            z, interval, *carry, keys, self.s_churn, self.s_min, self.s_max, self.s_noise
        )
        logsnr_s = interval.logsnr_s
        first = denoise(z, jnp.full((z.shape[0],), logsnr_t)).x_hat
        z_s = first_order(z, first, logsnr_t, logsnr_s)
        second = denoise(z_s, jnp.full((z.shape[0],), logsnr_s)).x_hat
        # The mean of both slopes (y - x_hat) / sigma, where y = z / alpha, differs from the first
        # by (first - second) / (2 sigma_s). Times the step in sigma, this is what remains.
        h = width(logsnr_t, logsnr_s)
        weight = jnp.where(h < _WIDEST, 0.5 * jnp.expm1(jnp.minimum(h, _WIDEST)), 0.0)
        alpha_s, _ = alpha_sigma(logsnr_s)
        return z_s + alpha_s * weight * (second - first), first, carry
