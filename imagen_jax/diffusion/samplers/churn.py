"""The churn of EDM (Karras et al. 2022, Algorithm 2): more noise before a step, which removes it.

In terms of EDM, sigma is the noise level of z / alpha: e^(-logsnr / 2).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_at_least, check_positive
from imagen_jax.diffusion.samplers.base import Interval, draw_noise
from imagen_jax.diffusion.schedules import alpha_sigma
from imagen_jax.errors import UserError

Array = jax.Array

_LARGEST_RISE = math.sqrt(2.0) - 1.0  # more new noise than there is would be too much


def check_churn(s_churn: float, s_min: float, s_max: float, s_noise: float) -> None:
    """Raises UserError for a value out of range. Values that are traced are not checked."""
    check_at_least("s_churn", s_churn, 0.0)
    check_at_least("s_min", s_min, 0.0)
    check_positive("s_max", s_max)
    check_positive("s_noise", s_noise)
    if all(isinstance(value, (int, float)) for value in (s_min, s_max)) and s_min > s_max:
        raise UserError(f"s_min={s_min} is above s_max={s_max}: no step would have churn")


def churn_noise(
    z: Array,
    interval: Interval,
    num_steps: int,
    start: Array,
    keys: Array,
    s_churn: Array | float,
    s_min: Array | float,
    s_max: Array | float,
    s_noise: Array | float,
) -> tuple[Array, Array]:
    """Adds noise to z: sigma rises by the factor 1 + min(s_churn / num_steps, sqrt(2) - 1).

    Args:
      z: `[B, H, W, C]` at `interval.logsnr_t`.
      interval: of the step.
      num_steps: of the sampler.
      start: scalar, the log-SNR that the sampler starts from; noise does not rise above it.
      keys: `[B]` typed keys, one per picture.
      s_churn, s_min, s_max, s_noise: see `Heun`; may be traced.

    Returns:
      z `[B, H, W, C]` and its log-SNR, a scalar.
    """
    logsnr = interval.logsnr_t
    sigma_edm = jnp.exp(-0.5 * logsnr)
    rise = jnp.minimum(s_churn / num_steps, _LARGEST_RISE)
    rise = jnp.where((s_min <= sigma_edm) & (sigma_edm <= s_max), rise, 0.0)
    raised = jnp.maximum(logsnr - 2.0 * jnp.log1p(rise), jnp.minimum(start, logsnr))
    alpha, _ = alpha_sigma(logsnr)
    alpha_raised, sigma_raised = alpha_sigma(raised)
    added = sigma_raised * jnp.sqrt(-jnp.expm1(raised - logsnr))
    noise = draw_noise(keys, interval.index, z.shape[1:])
    return (alpha_raised / alpha) * z + added * s_noise * noise, raised
