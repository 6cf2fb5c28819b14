"""DDIM (Imagen eq. 5; Song et al. 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_unit_interval
from imagen_jax.diffusion.process import expand, predict_eps
from imagen_jax.diffusion.samplers.base import Denoiser, Interval, draw_noise
from imagen_jax.diffusion.schedules import alpha_sigma

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DDIM:
    """Steps along the predicted noise; one call of the denoiser a step.

    Attributes:
      eta: amount of fresh noise, in [0, 1]; 0 is deterministic, 1 is `Ancestral(gamma=0)`.

    Raises:
      UserError: `eta` outside [0, 1].
    """

    kind: ClassVar[str] = "ddim"
    calls_per_step: ClassVar[int] = 1
    min_steps: ClassVar[int] = 1

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_unit_interval("eta", self.eta)

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
        z_s = ddim_step(z, x_hat, interval.logsnr_t, interval.logsnr_s, noise, self.eta)
        return z_s, x_hat, carry


def ddim_step(
    z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array, noise: Array, eta: Array | float
) -> Array:
    """The DDIM update from t to s < t (eq. 5 for eta = 0; Song et al. 2021 for eta > 0).

    z_s = alpha_s x_hat + sqrt(sigma_s^2 - n^2) eps_hat + n noise, where n is eta times the
    standard deviation of the posterior and eps_hat = (z_t - alpha_t x_hat) / sigma_t.

    Args:
      z, x_hat, noise: `[B, H, W, C]` float32.
      logsnr_t, logsnr_s: `[B]` or scalar, logsnr_s >= logsnr_t.
      eta: in [0, 1]; may be traced.

    Returns:
      z_s `[B, H, W, C]` float32.
    """
    eps_hat = predict_eps(x_hat, z, logsnr_t, "x")
    logsnr_t, logsnr_s = expand(logsnr_t, z.ndim), expand(logsnr_s, z.ndim)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    eta = jnp.asarray(eta, jnp.float32)
    noise_scale = eta * jnp.sqrt(-jnp.expm1(logsnr_t - logsnr_s)) * sigma_s
    # sigma_s^2 - n^2 without the cancellation at eta = 1.
    kept = (1.0 - eta**2) + eta**2 * jnp.exp(logsnr_t - logsnr_s)
    return alpha_s * x_hat + jnp.sqrt(kept) * sigma_s * eps_hat + noise_scale * noise
