"""The ancestral sampler of DDPM (Imagen eq. 6)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_unit_interval
from imagen_jax.diffusion.process import expand, posterior
from imagen_jax.diffusion.samplers.base import Denoiser, Interval, draw_noise
from imagen_jax.diffusion.schedules import alpha_sigma

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Draws from the posterior at x_hat; one call of the denoiser a step.

    Attributes:
      gamma: interpolation of the variance, in [0, 1] (eq. 6): 0 is that of the posterior, 1 that of
        q(z_t | z_s).

    Raises:
      UserError: `gamma` outside [0, 1].
    """

    kind: ClassVar[str] = "ancestral"
    calls_per_step: ClassVar[int] = 1
    min_steps: ClassVar[int] = 1

    gamma: float = 0.2

    def __post_init__(self) -> None:
        check_unit_interval("gamma", self.gamma)

    def init(self, z: Array, grid: Array) -> tuple[()]:
        """No carry: a step depends on the current state alone."""
        del z, grid
        return ()

    def step(
        self, denoise: Denoiser, z: Array, carry: tuple[()], interval: Interval, keys: Array
    ) -> tuple[Array, Array, tuple[()]]:
        """See `Sampler`."""
        x_hat = denoise(z, jnp.full((z.shape[0],), interval.logsnr_t)).x_hat
        noise = draw_noise(keys, interval.index, z.shape[1:])
        z_s = ancestral_step(z, x_hat, interval.logsnr_t, interval.logsnr_s, noise, self.gamma)
        return z_s, x_hat, carry


def ancestral_step(
    z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array, noise: Array, gamma: Array | float
) -> Array:
    """The ancestral update from t to s < t (eq. 6).

    The mean is that of the posterior at x_hat. The log-variance lies at gamma between that of the
    posterior, (1 - e^(l_t - l_s)) sigma_s^2, and that of q(z_t | z_s),
    (1 - e^(l_t - l_s)) sigma_t^2.

    Args:
      z, x_hat, noise: `[B, H, W, C]` float32.
      logsnr_t, logsnr_s: `[B]` or scalar, logsnr_s >= logsnr_t.
      gamma: in [0, 1]; may be traced.

    Returns:
      z_s `[B, H, W, C]` float32.
    """
    mean, _ = posterior(z, x_hat, logsnr_t, logsnr_s)
    logsnr_t, logsnr_s = expand(logsnr_t, z.ndim), expand(logsnr_s, z.ndim)
    _, sigma_t = alpha_sigma(logsnr_t)
    _, sigma_s = alpha_sigma(logsnr_s)
    gamma = jnp.asarray(gamma, jnp.float32)
    # The factor that both variances share stays outside the interpolation: where a schedule is
    # clipped it is 0, and 0 ** 0 would be 1.
    shared = jnp.sqrt(-jnp.expm1(logsnr_t - logsnr_s))
    return mean + shared * sigma_s ** (1.0 - gamma) * sigma_t**gamma * noise
