"""The denoising loss and its weightings.

The paper's loss (App. A, eq. 4) is the squared error in eps space: prediction "eps", `Unweighted`.
The other weightings are a factor on the eps error. It is converted to the network's prediction
type, so that networks of different types that imply the same x_hat have the same loss.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_positive, check_unit_interval
from imagen_jax.diffusion.process import check_prediction, target

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Unweighted:
    """The mean squared error of the network's own target."""

    kind: ClassVar[str] = "none"


@dataclasses.dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma)^power / SNR on the eps error (Hang et al. 2023, where power is 1).

    With power 1/2 and a large gamma it is the debiased loss of Yu et al. (2023).

    Attributes:
      gamma: positive.
      power: in [0, 1].

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "min_snr"

    gamma: float = 5.0
    power: float = 1.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)
        check_unit_interval("power", self.power)

    def log_weight(self, logsnr: Array) -> Array:
        """`[B]` float32, the logarithm of the factor on the eps error."""
        log_weight = self.power * jnp.minimum(math.log(self.gamma), logsnr)
        log_weight -= logsnr
        return log_weight


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - logsnr) on the eps error (Kingma and Gao 2023, Hoogeboom et al. 2024)."""

    kind: ClassVar[str] = "sigmoid"

    bias: float = 0.0

    def log_weight(self, logsnr: Array) -> Array:
        """`[B]` float32, the logarithm of the factor on the eps error."""
        return jax.nn.log_sigmoid(self.bias - logsnr)


# The choices that a config may name by `kind`.
WEIGHTINGS = (Unweighted, MinSNR, Sigmoid)
Weighting = Unweighted | MinSNR | Sigmoid


def loss_per_example(
    output: Array,
    x: Array,
    eps: Array,
    logsnr: Array,
    prediction: str,
    weighting: Weighting = Unweighted(),
) -> Array:
    """The weighted squared error of each example, averaged over H, W and C.

    Args:
      output: `[B, H, W, C]`, of the network, of type `prediction` (any float dtype; the loss
        is computed in float32).
      x, eps: `[B, H, W, C]` float32, the clean picture and the noise on it.
      logsnr: `[B]` float32.
      prediction: "eps", "v" or "x".
      weighting: one of `WEIGHTINGS`.

    Returns:
      `[B]` float32.

    Raises:
      UserError: unknown prediction type.
    """
    error = output.astype(jnp.float32) - target(x, eps, logsnr, prediction)
    weight = loss_weight(logsnr, prediction, weighting)
    return weight * jnp.mean(jnp.square(error), axis=(1, 2, 3))


def loss_weight(logsnr: Array, prediction: str, weighting: Weighting) -> Array:
    """The factor on the mean squared error of the network's own target.

    The eps error is SNR times the x error and alpha^2 = SNR / (1 + SNR) times the v error.

    Args:
      logsnr: `[B]` float32.
      prediction: "eps", "v" or "x".
      weighting: one of `WEIGHTINGS`.

    Returns:
      `[B]` float32.

    Raises:
      UserError: unknown prediction type.
    """
    check_prediction(prediction)
    if isinstance(weighting, Unweighted):
        return jnp.ones_like(logsnr)
    # In logarithms, so that no intermediate result under- or overflows at logsnr = +-20.
    if prediction == "eps":
        log_conversion = jnp.zeros_like(logsnr)
    elif prediction == "v":
        log_conversion = jax.nn.log_sigmoid(logsnr)
    else:
        log_conversion = logsnr
    return jnp.exp(weighting.log_weight(logsnr) + log_conversion)
