"""Log-SNR schedules: the log signal-to-noise ratio as a function of the time t.

`logsnr(t) = log(alpha_t^2 / sigma_t^2)` decreases from t = 0 (clean) to t = 1 (noise) and lies in
[-20, 20], so that it, alpha and sigma are finite and positive at every t including both ends.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_positive
from imagen_jax.errors import UserError

Array = jax.Array
Schedule = Callable[[Array], Array]

LOGSNR_MAX = 20.0

# The cosine schedule is alpha = cos(u), sigma = sin(u) of an angle u that grows linearly with t.
_ANGLE_START = math.atan(math.exp(-LOGSNR_MAX / 2))
_ANGLE_RANGE = math.atan(math.exp(LOGSNR_MAX / 2)) - _ANGLE_START


def logsnr_cosine(t: Array) -> Array:
    """The cosine schedule in continuous time, -2 log tan(a t + b).

    The paper (App. F) names the schedule and not the formula; this one is from the same authors'
    code (progressive distillation), with the ends at +20 and -20.

    Args:
      t: float32 of any shape, in [0, 1].

    Returns:
      float32 of the shape of `t`, in [-20, 20].
    """
    # The schedule is odd about t = 1/2. Near t = 1 the angle is so close to pi/2 that float32
    # loses its distance from it; 1 - t is exact there, so the clean half is evaluated for both.
    nearest_end = jnp.minimum(t, 1.0 - t)
    clean_half = -2.0 * jnp.log(jnp.tan(_ANGLE_RANGE * nearest_end + _ANGLE_START))
    return _clip(jnp.where(t <= 0.5, clean_half, -clean_half))


def logsnr_shifted_cosine(t: Array, resolution: int, reference: int) -> Array:
    """The cosine schedule moved by 2 log(reference / resolution), then clipped to [-20, 20].

    Larger pictures keep more of their low frequencies at the same noise level; the shift gives a
    picture of side `resolution` the noise that one of side `reference` has when both are averaged
    down to the same size (simple diffusion, Hoogeboom et al. 2023).

    Args:
      t: float32 of any shape, in [0, 1].
      resolution: side of the pictures that are diffused.
      reference: side for which the plain cosine schedule is right.

    Returns:
      float32 of the shape of `t`, in [-20, 20].
    """
    return _clip(logsnr_cosine(t) + 2.0 * math.log(reference / resolution))


def logsnr_linear(t: Array) -> Array:
    """The "linear" schedule (1000 betas from 1e-4 to 0.02, App. F.3) in continuous time.

    It is -log expm1(integral of beta), with the integral 0.1 t + 9.95 t^2 of the variance
    preserving SDE, clipped to [-20, 20]: the paper gives no continuous form, and this one is within
    0.1 of the discrete log-SNR at every step.

    Args:
      t: float32 of any shape, in [0, 1].

    Returns:
      float32 of the shape of `t`, in [-10.05, 20].
    """
    return _clip(-jnp.log(jnp.expm1(0.1 * t + 9.95 * t * t)))


def logsnr_normal(t: Array, mean: float, std: float) -> Array:
    """A normal distribution of the log-SNR over uniform times, clipped to [-20, 20].

    For training only: it concentrates the examples around `mean`. Sampling needs a schedule that
    reaches both ends. It is the log-normal distribution of noise
    levels of EDM (Karras et al. 2022, Table 1), whose P_mean and P_std are -mean / 2 and std / 2.

    Args:
      t: float32 of any shape, in [0, 1].
      mean, std: of the log-SNR.

    Returns:
      float32 of the shape of `t`, in [-20, 20].
    """
    return _clip(mean - std * jax.scipy.special.ndtri(t))


@dataclasses.dataclass(frozen=True)
class Cosine:
    """The cosine schedule, see `logsnr_cosine`; the same for pictures of every size."""

    kind: ClassVar[str] = "cosine"

    def at(self, resolution: int) -> Schedule:
        """The function t -> logsnr for pictures of side `resolution`."""
        del resolution
        return logsnr_cosine


@dataclasses.dataclass(frozen=True)
class ShiftedCosine:
    """The cosine schedule shifted by the resolution, see `logsnr_shifted_cosine`.

    Attributes:
      reference: side of the pictures for which the plain cosine schedule is right.

    Raises:
      UserError: `reference` is not positive.
    """

    kind: ClassVar[str] = "shifted_cosine"

    reference: int = 64

    def __post_init__(self) -> None:
        check_positive("reference", self.reference)

    def at(self, resolution: int) -> Schedule:
        """The function t -> logsnr for pictures of side `resolution`."""
        return functools.partial(
            logsnr_shifted_cosine, resolution=resolution, reference=self.reference
        )


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear betas, see `logsnr_linear`; the same for pictures of every size."""

    kind: ClassVar[str] = "linear"

    def at(self, resolution: int) -> Schedule:
        """The function t -> logsnr for pictures of side `resolution`."""
        del resolution
        return logsnr_linear


@dataclasses.dataclass(frozen=True)
class ScheduleLevels:
    """Noise levels of training examples: those of the sampling schedule at uniform times."""

    kind: ClassVar[str] = "schedule"

    def at(self, schedule: Schedule) -> Schedule:
        """The function from a uniform time to the logsnr of a training example."""
        return schedule


@dataclasses.dataclass(frozen=True)
class NormalLevels:
    """Noise levels of training examples: a normal distribution, see `logsnr_normal`.

    Attributes:
      mean: of the log-SNR, between -20 and 20.
      std: of the log-SNR, positive.

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "normal"

    mean: float = 0.0
    std: float = 2.0

    def __post_init__(self) -> None:
        if not abs(self.mean) < LOGSNR_MAX:
            raise UserError(f"mean={self.mean} must be between -{LOGSNR_MAX:g} and {LOGSNR_MAX:g}")
        check_positive("std", self.std)

    def at(self, schedule: Schedule) -> Schedule:
        """The function from a uniform time to the logsnr of a training example."""
        del schedule
        return functools.partial(logsnr_normal, mean=self.mean, std=self.std)


# The choices that a config may name by `kind`.
SCHEDULES = (Cosine, ShiftedCosine, Linear)
TRAIN_LEVELS = (ScheduleLevels, NormalLevels)


def alpha_sigma(logsnr: Array) -> tuple[Array, Array]:
    """alpha and sigma, alpha^2 + sigma^2 = 1, of a log-SNR of any shape (float32).

    Both are square roots of a sigmoid, which keeps the small one exact at either end;
    sqrt(1 - alpha^2) would be 0 there.
    """
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def _clip(logsnr: Array) -> Array:
    return jnp.clip(logsnr, -LOGSNR_MAX, LOGSNR_MAX)
