"""The forward process, its posterior, and conversions among x, eps and v (Imagen App. A).

    z = alpha x + sigma eps        v = alpha eps - sigma x

A `logsnr` argument is float32 `[B]`, one per example, or a scalar for the whole batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_choice
from imagen_jax.diffusion.schedules import alpha_sigma

Array = jax.Array

# What a network may predict.
PREDICTIONS = ("eps", "v", "x")


def expand(value: Array, ndim: int) -> Array:
    """A `[B]` or scalar `value` with axes of size 1 appended, for arrays of `ndim` axes."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (ndim - value.ndim))


def diffuse(x: Array, eps: Array, logsnr: Array) -> Array:
    """A draw of q(z | x): z = alpha x + sigma eps.

    Args:
      x: `[B, H, W, C]` float32, clean images.
      eps: `[B, H, W, C]` float32, standard normal noise.
      logsnr: `[B]` or scalar.

    Returns:
      `[B, H, W, C]` float32.
    """
    alpha, sigma = alpha_sigma(expand(logsnr, x.ndim))
    return alpha * x + sigma * eps


def posterior(z_t: Array, x: Array, logsnr_t: Array, logsnr_s: Array) -> tuple[Array, Array]:
    """Mean and variance of q(z_s | z_t, x) for s < t (App. A).

    mean = e^(l_t - l_s) (alpha_s / alpha_t) z_t + (1 - e^(l_t - l_s)) alpha_s x
    var = (1 - e^(l_t - l_s)) sigma_s^2

    Args:
      z_t, x: `[B, H, W, C]` float32.
      logsnr_t, logsnr_s: `[B]` or scalar, logsnr_s >= logsnr_t.

    Returns:
      mean `[B, H, W, C]` and var `[B, 1, 1, 1]` (or `[1, 1, 1, 1]`), float32.
    """
    logsnr_t, logsnr_s = expand(logsnr_t, z_t.ndim), expand(logsnr_s, z_t.ndim)
    alpha_t, _ = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    # expm1: the grid may be so fine that e^(l_t - l_s) rounds to 1.
    toward_x = -jnp.expm1(logsnr_t - logsnr_s)
    mean = jnp.exp(logsnr_t - logsnr_s) * (alpha_s / alpha_t) * z_t + toward_x * alpha_s * x
    return mean, toward_x * sigma_s**2


def target(x: Array, eps: Array, logsnr: Array, kind: str) -> Array:
    """The target of a network of prediction type `kind` ("x", "eps" or "v").

    Args:
      x, eps: `[B, H, W, C]` float32.
      logsnr: `[B]` or scalar.

    Returns:
      `[B, H, W, C]` float32.

    Raises:
      UserError: unknown `kind`.
    """
    check_prediction(kind)
    if kind == "x":
        return x
    if kind == "eps":
        return eps
    alpha, sigma = alpha_sigma(expand(logsnr, x.ndim))
    return alpha * eps - sigma * x


def predict_x(prediction: Array, z: Array, logsnr: Array, kind: str) -> Array:
    """The clean image that a prediction of type `kind` implies at `z`.

    Args:
      prediction, z: `[B, H, W, C]` float32.
      logsnr: `[B]` or scalar.
      kind: "x", "eps" or "v".

    Returns:
      x_hat `[B, H, W, C]` float32.

    Raises:
      UserError: unknown `kind`.
    """
    check_prediction(kind)
    if kind == "x":
        return prediction
    alpha, sigma = alpha_sigma(expand(logsnr, z.ndim))
    if kind == "eps":
        return (z - sigma * prediction) / alpha
    return alpha * z - sigma * prediction


def predict_eps(prediction: Array, z: Array, logsnr: Array, kind: str) -> Array:
    """The noise that a prediction of type `kind` implies at `z`; arguments as in `predict_x`."""
    check_prediction(kind)
    if kind == "eps":
        return prediction
    alpha, sigma = alpha_sigma(expand(logsnr, z.ndim))
    if kind == "x":
        return (z - alpha * prediction) / sigma
    return sigma * z + alpha * prediction


def predict_v(prediction: Array, z: Array, logsnr: Array, kind: str) -> Array:
    """The v that a prediction of type `kind` implies at `z`; arguments as in `predict_x`."""
    check_prediction(kind)
    if kind == "v":
        return prediction
    alpha, sigma = alpha_sigma(expand(logsnr, z.ndim))
    if kind == "x":
        return (alpha * z - prediction) / sigma
    return (prediction - sigma * z) / alpha


def check_prediction(kind: str) -> None:
    """Raises UserError unless `kind` is a prediction type."""
    check_choice("prediction", kind, PREDICTIONS)
