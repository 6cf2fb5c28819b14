"""The denoising loss and its weightings.

The paper's loss (App. A, eq. 4) is the squared error in eps space: prediction "eps", weighting
"none". Weightings other than "none" are defined as a factor on the eps error and converted, so
that networks of different types that imply the same x_hat have the same loss.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from imagen_jax.config import DiffusionConfig
from imagen_jax.diffusion.process import target
from imagen_jax.errors import UserError

Array = jax.Array


def loss_per_example(
    prediction: Array, x: Array, eps: Array, logsnr: Array, config: DiffusionConfig
) -> Array:
    """The weighted squared error of each example, averaged over H, W and C.

    Args:
      prediction: `[B, H, W, C]`, the network's output of type `config.prediction` (any float
        dtype; the loss is computed in float32).
      x, eps: `[B, H, W, C]` float32, the clean picture and the noise on it.
      logsnr: `[B]` float32.
      config: prediction type and weighting.

    Returns:
      `[B]` float32.

    Raises:
      UserError: unknown prediction type or weighting.
    """
    error = prediction.astype(jnp.float32) - target(x, eps, logsnr, config.prediction)
    return loss_weight(logsnr, config) * jnp.mean(jnp.square(error), axis=(1, 2, 3))


def loss_weight(logsnr: Array, config: DiffusionConfig) -> Array:
    """The factor on the mean squared error of the network's own target.

    On the eps error: 1 for "none"; min(SNR, gamma)^p / SNR for "min_snr" (Hang et al. 2023, where
    p is 1; with p = 1/2 and no gamma it is the debiased loss of Yu et al. 2023); sigmoid(b -
    logsnr) for "sigmoid" (Kingma and Gao 2023, Hoogeboom et al. 2024). The eps error is SNR times
    the x error and alpha^2 = SNR / (1 + SNR) times the v error.

    Args:
      logsnr: `[B]` float32.
      config: prediction type and weighting.

    Returns:
      `[B]` float32.

    Raises:
      UserError: unknown prediction type or weighting, a gamma that is not positive, or a power
        that is not in [0, 1].
    """
    if config.loss_weighting == "none":
        return jnp.ones_like(logsnr)
    if config.loss_weighting == "min_snr":
        if config.min_snr_gamma <= 0:
            raise UserError(f"min_snr_gamma is {config.min_snr_gamma}: it must be positive.")
        if not 0.0 <= config.min_snr_power <= 1.0:
            raise UserError(f"min_snr_power is {config.min_snr_power}: it must be in [0, 1].")
        log_weight = config.min_snr_power * jnp.minimum(math.log(config.min_snr_gamma), logsnr)
        log_weight -= logsnr
    elif config.loss_weighting == "sigmoid":
        log_weight = jax.nn.log_sigmoid(config.sigmoid_bias - logsnr)
    else:
        raise UserError(
            f"Unknown loss weighting '{config.loss_weighting}': choose none, min_snr or sigmoid."
        )
    # In logarithms, so that no intermediate under- or overflows at logsnr = +-20.
    if config.prediction == "eps":
        log_conversion = jnp.zeros_like(logsnr)
    elif config.prediction == "v":
        log_conversion = jax.nn.log_sigmoid(logsnr)
    elif config.prediction == "x":
        log_conversion = logsnr
    else:
        raise UserError(f"Unknown prediction type '{config.prediction}': choose eps, v or x.")
    return jnp.exp(log_weight + log_conversion)
