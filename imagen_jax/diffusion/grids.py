"""Grids: the log-SNRs that a sampler steps over.

A grid of N steps has N + 1 log-SNRs: those at which the denoiser is called and, last, the clean end
of the schedule. The result of the last step is x_hat, so only hooks see that last value.

Sigma here is the noise level of EDM, that of z / alpha: e^(-logsnr / 2).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_at_least, check_positive
from imagen_jax.diffusion.samplers.base import uniform_grid
from imagen_jax.diffusion.schedules import LOGSNR_MAX, Schedule
from imagen_jax.errors import UserError

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformGrid:
    """Uniform times of the schedule from t = 1 to 0 (Imagen App. A)."""

    kind: ClassVar[str] = "uniform"

    def at(self, schedule: Schedule, num_steps: int) -> Array:
        """`[num_steps + 1]` float32 log-SNRs, not decreasing."""
        return uniform_grid(schedule, num_steps)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogSNRGrid:
    """Uniform log-SNRs from that of `sigma_max` to that of `sigma_min` (DPM-Solver, section 3.4).

    Attributes:
      sigma_max, sigma_min: noise levels of the first and the last call of the denoiser; 0 for those
        of the schedule's ends, beyond which none goes. A cosine schedule ends at 22,026 and
        0.000045, where uniform steps would be wasted.

    Raises:
      UserError: a negative value, or sigma_min not below sigma_max.
    """

    kind: ClassVar[str] = "logsnr"

    sigma_max: float = 80.0
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_max, self.sigma_min)

    def at(self, schedule: Schedule, num_steps: int) -> Array:
        """`[num_steps + 1]` float32 log-SNRs, not decreasing."""
        start, end, clean = _ends(schedule, self.sigma_max, self.sigma_min)
        ramp = _ramp(num_steps)
        return _grid(start * (1.0 - ramp) + end * ramp, start, clean)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KarrasGrid:
    """Uniform sigma^(1 / rho) from `sigma_max` to `sigma_min` (Karras et al. 2022, eq. 5).

    Attributes:
      rho: the larger, the more of the steps lie at low noise; positive.
      sigma_max, sigma_min: see `LogSNRGrid`. The defaults are the paper's.

    Raises:
      UserError: a value out of range, or sigma_min not below sigma_max.
    """

    kind: ClassVar[str] = "karras"

    rho: float = 7.0
    sigma_max: float = 80.0
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        check_positive("rho", self.rho)
        _check_sigmas(self.sigma_max, self.sigma_min)

    def at(self, schedule: Schedule, num_steps: int) -> Array:
        """`[num_steps + 1]` float32 log-SNRs, not decreasing."""
        start, end, clean = _ends(schedule, self.sigma_max, self.sigma_min)
        # log(sigma^(1 / rho) / sigma_max^(1 / rho)), so that a small rho does not overflow.
        drop = jnp.expm1(-0.5 * (end - start) / self.rho)
        logsnrs = start - 2.0 * self.rho * jnp.log1p(_ramp(num_steps) * drop)
        return _grid(jnp.minimum(logsnrs, end), start, clean)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExplicitGrid:
    """The log-SNRs at which the denoiser is called, one a step.

    Attributes:
      logsnrs: rising, in [-20, 20). The first is where sampling starts from pure noise.

    Raises:
      UserError: no log-SNR, one that is out of range or not above the one before.
    """

    kind: ClassVar[str] = "explicit"

    logsnrs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.logsnrs:
            raise UserError("logsnrs=() is empty; give the log-SNRs of the steps, rising")
        numbers = [value for value in self.logsnrs if isinstance(value, (int, float))]
        for value in numbers:
            if not -LOGSNR_MAX <= value < LOGSNR_MAX:
                raise UserError(
                    f"logsnrs has {value}, which is not in [-{LOGSNR_MAX:g}, {LOGSNR_MAX:g})"
                )
        for before, after in itertools.pairwise(numbers):
            if not after > before:
                raise UserError(
                    f"logsnrs must rise, from noise to the clean picture, but {after} comes after "
                    f"{before}"
                )

    def at(self, schedule: Schedule, num_steps: int) -> Array:
        """`[num_steps + 1]` float32 log-SNRs, rising.

        Raises:
          UserError: `num_steps` is not the number of log-SNRs.
        """
        del schedule
        check_num_steps(self, num_steps)
        return jnp.stack([jnp.float32(value) for value in (*self.logsnrs, LOGSNR_MAX)])


# The choices that a config may name by `kind`.
GRIDS = (UniformGrid, LogSNRGrid, KarrasGrid, ExplicitGrid)
Grid = UniformGrid | LogSNRGrid | KarrasGrid | ExplicitGrid


def check_num_steps(grid: Grid, num_steps: int) -> None:
    """Raises UserError unless the grid can have this number of steps."""
    if isinstance(grid, ExplicitGrid) and num_steps != len(grid.logsnrs):
        raise UserError(
            f"num_steps={num_steps}, but the explicit grid has {len(grid.logsnrs)} log-SNRs, one a "
            "step"
        )


def _check_sigmas(sigma_max: float, sigma_min: float) -> None:
    check_at_least("sigma_max", sigma_max, 0.0)
    check_at_least("sigma_min", sigma_min, 0.0)
    numbers = all(isinstance(value, (int, float)) for value in (sigma_max, sigma_min))
    if numbers and sigma_max and not sigma_min < sigma_max:
        raise UserError(
            f"sigma_min={sigma_min} must be below sigma_max={sigma_max}: the grid would not rise "
            "in log-SNR"
        )


def _ends(
    schedule: Schedule, sigma_max: Array | float, sigma_min: Array | float
) -> tuple[Array, Array, Array]:
    """The log-SNRs of the first and the last call, and that of the clean end."""
    noisy, clean = schedule(jnp.float32(1.0)), schedule(jnp.float32(0.0))

    def logsnr(sigma: Array | float, end: Array) -> Array:
        sigma = jnp.asarray(sigma, jnp.float32)
        positive = jnp.where(sigma > 0.0, sigma, 1.0)
        return jnp.where(sigma > 0.0, jnp.clip(-2.0 * jnp.log(positive), noisy, clean), end)

    return logsnr(sigma_max, noisy), logsnr(sigma_min, clean), clean


def _ramp(num_steps: int) -> Array:
    """`[num_steps]` uniform numbers from 0 to 1; 0 for one step."""
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be at least 1")
    return jnp.linspace(0.0, 1.0, num_steps, dtype=jnp.float32)


def _grid(logsnrs: Array, start: Array, clean: Array) -> Array:
    """The log-SNRs with the clean end; rounding may not make them fall."""
    return jnp.append(jax.lax.cummax(jnp.maximum(logsnrs, start)), clean)
