"""Samplers: from noise to an image with any denoiser (Imagen App. A, eq. 5 and 6).

A denoiser is a function `denoise(z, logsnr) -> x_hat`, already guided and thresholded; a closed
form, a guided network and a distilled one are interchangeable.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import expand, posterior, predict_eps
from imagen_jax.diffusion.schedules import Schedule, alpha_sigma
from imagen_jax.errors import UserError

Array = jax.Array
Denoiser = Callable[[Array, Array], Array]
Step = Callable[[Array, Array, Array, Array, Array], Array]


def time_grid(num_steps: int) -> Array:
    """The times from 1 to 0 between which a sampler of `num_steps` steps moves.

    Returns:
      `[num_steps + 1]` float32, uniform, both ends exact.

    Raises:
      UserError: `num_steps` below 1.
    """
    if num_steps < 1:
        raise UserError(f"num_steps is {num_steps}: a sampler needs at least 1 step.")
    return jnp.linspace(1.0, 0.0, num_steps + 1, dtype=jnp.float32)


def draw_noise(keys: Array, index: Array | int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise, each image from its own key, so that its neighbours do not matter.

    Args:
      keys: `[B]` typed keys, one per image.
      index: which of the draws of these keys this is.
      shape: (H, W, C) of one image.

    Returns:
      `[B, H, W, C]` float32.
    """

    def draw(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)

    return jax.vmap(draw)(keys)


def ddim_step(
    z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array, noise: Array, eta: Array | float
) -> Array:
    """One DDIM step from t to s < t (eq. 5 for eta = 0; Song et al. 2021 for eta > 0).

    z_s = alpha_s x_hat + sqrt(sigma_s^2 - n^2) eps_hat + n noise, where n is eta times the
    standard deviation of the posterior and eps_hat = (z_t - alpha_t x_hat) / sigma_t. With eta = 1
    this is `ancestral_step` with gamma = 0.

    Args:
      z, x_hat, noise: `[B, H, W, C]` float32.
      logsnr_t, logsnr_s: `[B]` or scalar, logsnr_s >= logsnr_t.
      eta: in [0, 1]; 0 is deterministic; may be traced.

    Returns:
      z_s `[B, H, W, C]` float32.

    Raises:
      UserError: `eta` is a Python number outside [0, 1].
    """
    _check_unit_interval("eta", eta)
    eps_hat = predict_eps(x_hat, z, logsnr_t, "x")
    logsnr_t, logsnr_s = expand(logsnr_t, z.ndim), expand(logsnr_s, z.ndim)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    eta = jnp.asarray(eta, jnp.float32)
    noise_scale = eta * jnp.sqrt(-jnp.expm1(logsnr_t - logsnr_s)) * sigma_s
    # sigma_s^2 - n^2 without the cancellation at eta = 1.
    kept = (1.0 - eta**2) + eta**2 * jnp.exp(logsnr_t - logsnr_s)
    return alpha_s * x_hat + jnp.sqrt(kept) * sigma_s * eps_hat + noise_scale * noise


def ancestral_step(
    z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array, noise: Array, gamma: Array | float
) -> Array:
    """One step of the ancestral DDPM sampler from t to s < t (eq. 6).

    The mean is that of the posterior at x_hat; the variance lies, in logarithms, at gamma between
    the posterior's (1 - e^(l_t - l_s)) sigma_s^2 (gamma = 0) and that of q(z_t | z_s),
    (1 - e^(l_t - l_s)) sigma_t^2 (gamma = 1).

    Args:
      z, x_hat, noise: `[B, H, W, C]` float32.
      logsnr_t, logsnr_s: `[B]` or scalar, logsnr_s >= logsnr_t.
      gamma: in [0, 1]; may be traced.

    Returns:
      z_s `[B, H, W, C]` float32.

    Raises:
      UserError: `gamma` is a Python number outside [0, 1].
    """
    _check_unit_interval("gamma", gamma)
    mean, _ = posterior(z, x_hat, logsnr_t, logsnr_s)
    logsnr_t, logsnr_s = expand(logsnr_t, z.ndim), expand(logsnr_s, z.ndim)
    _, sigma_t = alpha_sigma(logsnr_t)
    _, sigma_s = alpha_sigma(logsnr_s)
    gamma = jnp.asarray(gamma, jnp.float32)
    # The factor that both variances share is taken out of the interpolation: it may be 0 where a
    # schedule is clipped, and 0 to a power has no place here.
    shared = jnp.sqrt(-jnp.expm1(logsnr_t - logsnr_s))
    return mean + shared * sigma_s ** (1.0 - gamma) * sigma_t**gamma * noise


def sample(
    denoise: Denoiser, z_1: Array, keys: Array, schedule: Schedule, num_steps: int, step: Step
) -> Array:
    """Runs a sampler over the whole time grid as one `jax.lax.scan`.

    The last step, to t = 0, returns x_hat without noise. Step i = 0 .. num_steps - 1 uses
    `draw_noise(keys, i, ...)`; draw anything else, such as `z_1`, from other keys.

    Args:
      denoise: `(z [B, H, W, C], logsnr [B]) -> x_hat [B, H, W, C]`, guided and thresholded.
      z_1: `[B, H, W, C]` float32, standard normal noise.
      keys: `[B]` typed keys, one per image.
      schedule: t -> logsnr, as `make_schedule` gives it.
      num_steps: number of steps and of calls of `denoise`.
      step: `(z, x_hat, logsnr_t, logsnr_s, noise) -> z_s`, `ddim_step` or `ancestral_step` with
        eta or gamma bound.

    Returns:
      x_hat `[B, H, W, C]` float32 of the last step.

    Raises:
      UserError: `num_steps` below 1.
    """
    logsnr = schedule(time_grid(num_steps))
    batch_size = z_1.shape[0]

    def advance(z: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, logsnr_t, logsnr_s = inputs
        x_hat = denoise(z, jnp.full((batch_size,), logsnr_t))
        noise = draw_noise(keys, index, z.shape[1:])
        z_s = step(z, x_hat, logsnr_t, logsnr_s, noise)
        return jnp.where(index == num_steps - 1, x_hat, z_s), None

    x_hat, _ = jax.lax.scan(advance, z_1, (jnp.arange(num_steps), logsnr[:-1], logsnr[1:]))
    return x_hat


def _check_unit_interval(name: str, value: Array | float) -> None:
    if isinstance(value, (int, float)) and not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value}: it must be in [0, 1].")
