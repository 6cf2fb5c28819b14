"""Guidance: away from an unconditional prediction, or from that of a weaker network.

Classifier-free guidance is Imagen section 2.2, eq. 2; autoguidance Karras et al. 2024a, eq. 3. With
the conditional prediction D, the one without text (or of a negative prompt) D_0 and the one of the
guide network D_g, the guided prediction is

    D + s (w - 1) P(D - D_0) + s (w_g - 1) P(D - D_g)

with the strength s of the interval and the schedule, and the projection P. Plain guidance has s = 1
and P = 1. The rescaling comes last; thresholding of x_hat comes after all of this.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.checks import check_at_least, check_unit_interval
from imagen_jax.diffusion.process import expand
from imagen_jax.errors import UserError

Array = jax.Array

# The log-SNRs of all schedules lie in between; an interval up to an end of it is open there.
LOWEST_LOGSNR, HIGHEST_LOGSNR = -20.0, 20.0
# Keeps a division by the norm or standard deviation of a flat picture finite.
_TINY = 1e-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConstantWeight:
    """The same weight in all steps."""

    kind: ClassVar[str] = "constant"

    def strength(self, place: Array, step: Array, num_steps: int) -> Array:
        """The factor of w - 1, of the shape of `step`.

        Args:
          place: float32, the place of the step in the grid, from 0 (noise) to 1 (last step).
          step: int32, the number of the step, from 0.
          num_steps: of the grid.
        """
        del step, num_steps
        return jnp.ones_like(place)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearWeight:
    """From no guidance in the first step to 2 (w - 1) in the last; w - 1 in the mean.

    The linear schedule of Wang et al. 2024, "Analysis of classifier-free guidance weight
    schedulers".
    """

    kind: ClassVar[str] = "linear"

    def strength(self, place: Array, step: Array, num_steps: int) -> Array:
        """See `ConstantWeight`."""
        del step, num_steps
        return 2.0 * place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CosineWeight:
    """1 - cos(pi u) times w - 1 at the place u: as `LinearWeight`, with flat ends.

    The cosine schedule of Wang et al. 2024.
    """

    kind: ClassVar[str] = "cosine"

    def strength(self, place: Array, step: Array, num_steps: int) -> Array:
        """See `ConstantWeight`."""
        del step, num_steps
        return 1.0 - jnp.cos(jnp.pi * place)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OscillatingWeight:
    """The weight in the first steps, then no guidance and the weight in turn.

    Imagen Video (Ho et al. 2022), section 2.6.2, for less saturation in a base and in its first
    super-resolution stages; larger pictures get artifacts. Steps without guidance cost less.

    Attributes:
      constant: share of the steps before it oscillates, in [0, 1].

    Raises:
      UserError: `constant` outside [0, 1].
    """

    kind: ClassVar[str] = "oscillating"

    constant: float = 0.25

    def __post_init__(self) -> None:
        check_unit_interval("constant", self.constant)

    def strength(self, place: Array, step: Array, num_steps: int) -> Array:
        """See `ConstantWeight`."""
        first = jnp.round(jnp.asarray(self.constant, jnp.float32) * num_steps).astype(jnp.int32)
        return jnp.where(step < first, 1, (step - first) % 2).astype(place.dtype)


# The choices that a config may name by `kind`.
WEIGHT_SCHEDULES = (ConstantWeight, LinearWeight, CosineWeight, OscillatingWeight)
WeightSchedule = ConstantWeight | LinearWeight | CosineWeight | OscillatingWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """How far a prediction is moved away from references, where, and in which directions.

    `weight` alone may be set by position. With a rescaling, a projection or a bound, guidance works
    on x_hat; otherwise the space does not matter, see `guide`.

    The momentum of APG is left out: a denoiser sees z and the noise level, and keeps no state.

    Attributes:
      weight: w of eq. 2, for the reference without text; 1 is no guidance.
      guide_weight: w_g of autoguidance; used where there are guide weights. 1 is none.
      schedule: of both weights over the steps: `ConstantWeight`, `LinearWeight`, `CosineWeight` or
        `OscillatingWeight`.
      interval: (low, high) in log-SNR. Guidance acts at low <= logsnr < high (Kynkaanniemi et al.
        2024, who write it in sigma = e^(-logsnr/2)). Outside of it, only the conditional network
        runs. (-20, 20) are all noise levels.
      rescale: phi in [0, 1] (Lin et al. 2023, section 3.4). x_hat is scaled to the standard
        deviation that it has without guidance, in each picture; phi is the share of the result.
      parallel: eta of APG (Sadat et al. 2024), in [0, 1]: the factor of the part of the difference
        D - D_0 that is parallel to D. 1 is plain guidance.
      max_norm: r of APG, the largest L2 norm of the difference D - D_0 in each picture, before the
        weight; 0 for none. It depends on the number of pixels.

    Raises:
      UserError: a weight is not finite, the interval is empty, or a value is out of range.
    """

    weight: float = 3.0
    guide_weight: float = dataclasses.field(default=2.0, kw_only=True)
    schedule: WeightSchedule = dataclasses.field(default=ConstantWeight(), kw_only=True)
    interval: tuple[float, float] = dataclasses.field(
        default=(LOWEST_LOGSNR, HIGHEST_LOGSNR), kw_only=True
    )
    rescale: float = dataclasses.field(default=0.0, kw_only=True)
    parallel: float = dataclasses.field(default=1.0, kw_only=True)
    max_norm: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("weight", "guide_weight"):
            value = getattr(self, name)
            if _is_number(value) and not math.isfinite(value):
                raise UserError(f"{name}={value} must be finite")
        check_unit_interval("rescale", self.rescale)
        check_unit_interval("parallel", self.parallel)
        check_at_least("max_norm", self.max_norm, 0.0)
        if isinstance(self.interval, tuple) and all(map(_is_number, self.interval)):
            if len(self.interval) != 2:
                raise UserError(f"interval={self.interval} must be two log-SNRs, (low, high)")
            low, high = self.interval
            if not low < high:
                raise UserError(
                    f"interval=({low}, {high}) is empty: the first log-SNR must be below the second"
                )

    def without_idle_parts(self) -> Guidance:
        """The same guidance with None for each setting that does nothing, for use in a program.

        Whether a setting does nothing decides what is compiled; its value otherwise does not.
        """
        changes = {}
        for name, idle in (
            ("weight", 1.0),
            ("guide_weight", 1.0),
            ("rescale", 0.0),
            ("parallel", 1.0),
            ("max_norm", 0.0),
        ):
            if _is_number(getattr(self, name)) and getattr(self, name) == idle:
                changes[name] = None
        if self.interval is not None and all(map(_is_number, self.interval)):
            low, high = self.interval
            # Rounding may put the ends of a grid outside.
            low = -math.inf if low <= LOWEST_LOGSNR else low
            high = math.inf if high >= HIGHEST_LOGSNR else high
            everywhere = low == -math.inf and high == math.inf
            changes["interval"] = None if everywhere else (low, high)
        return dataclasses.replace(self, **changes)

    @property
    def varies(self) -> bool:
        """Whether the strength depends on the noise level. Needs `without_idle_parts`."""
        return self.interval is not None or not isinstance(self.schedule, ConstantWeight)

    def strength(self, logsnr: Array, grid: Array | None = None) -> Array:
        """The factor of w - 1 at each noise level; 0 is no guidance.

        Args:
          logsnr: `[B]` float32.
          grid: `[N + 1]` float32, the log-SNRs of the sampler's steps. A noise level belongs to the
            step that starts nearest to it. Needed unless the schedule is constant.

        Returns:
          `[B]` float32.
        """
        strength = jnp.ones_like(logsnr)
        if not isinstance(self.schedule, ConstantWeight):
            num_steps = grid.shape[0] - 1
            step = jnp.argmin(jnp.abs(logsnr[:, None] - grid[None, :-1]), axis=1)
            # A single step is the last one and, for its weight, the middle of the grid.
            place = step / (num_steps - 1) if num_steps > 1 else jnp.full(step.shape, 0.5)
            strength = self.schedule.strength(
                place.astype(logsnr.dtype), step.astype(jnp.int32), num_steps
            )
        if self.interval is not None:
            low, high = self.interval
            strength = jnp.where((low <= logsnr) & (logsnr < high), strength, 0.0)
        return strength

    @property
    def is_affine(self) -> bool:
        """Whether it is a weighted sum of predictions. Needs `without_idle_parts`."""
        return self.rescale is None and self.parallel is None and self.max_norm is None

    def combine(
        self, conditional: Array, references: Sequence[tuple[Array, Array]], strength: Array | None
    ) -> Array:
        """The guided prediction. Needs `without_idle_parts`.

        Args:
          conditional: `[B, H, W, C]` float32: x_hat or, if `is_affine`, of any type.
          references: predictions like `conditional`, each with its weight (scalar).
          strength: `[B]`, see `strength`; None for 1.

        Returns:
          `[B, H, W, C]` float32.
        """
        guided = conditional
        for number, (reference, weight) in enumerate(references):
            if strength is not None:
                # Not 1 + (w - 1) for w, which may round.
                weight = jnp.where(strength == 1.0, weight, 1.0 + strength * (weight - 1.0))
            if self.parallel is None and self.max_norm is None and number == 0:
                guided = guide(conditional, reference, weight)
            else:
                difference = self._projected(conditional - reference, conditional)
                guided = guided + (expand(weight, guided.ndim) - 1.0) * difference
        return guided if self.rescale is None else rescaled(guided, conditional, self.rescale)

    def _projected(self, difference: Array, conditional: Array) -> Array:
        if self.max_norm is not None:
            difference = difference * jnp.minimum(1.0, self.max_norm / _norm(difference))
        if self.parallel is not None:
            direction = conditional / _norm(conditional)
            along = jnp.sum(difference * direction, _per_picture(difference), keepdims=True)
            difference = difference - (1.0 - self.parallel) * along * direction
        return difference


def guide(conditional: Array, unconditional: Array, w: Array | float) -> Array:
    """w conditional + (1 - w) unconditional; w = 1 is no guidance.

    eps, v and x_hat are affine in each other at a given z, and the two weights add up to one, so
    guiding any of them gives the same picture.

    Args:
      conditional, unconditional: `[B, H, W, C]` predictions of the same type at the same z.
      w: guidance weight, scalar or `[B]`, possibly traced.

    Returns:
      `[B, H, W, C]`.
    """
    w = expand(w, conditional.ndim)
    # Written as in the paper and not as u + w (c - u): at w = 1 this is exactly `conditional`.
    return w * conditional + (1.0 - w) * unconditional


def rescaled(guided: Array, conditional: Array, phi: Array | float) -> Array:
    """`guided`, with its standard deviation brought to that of `conditional` by the share `phi`.

    Lin et al. 2023, eqs. 15 and 16. Deviations are from the mean of all numbers of a picture.

    Args:
      guided, conditional: `[B, H, W, C]` float32.
      phi: in [0, 1]; may be traced.

    Returns:
      `[B, H, W, C]` float32.
    """
    axes = _per_picture(guided)
    goal = jnp.std(conditional, axes, keepdims=True)
    factor = goal / jnp.maximum(jnp.std(guided, axes, keepdims=True), _TINY)
    return phi * (guided * factor) + (1.0 - phi) * guided


def _norm(x: Array) -> Array:
    """L2 norm of each picture, `[B, 1, 1, 1]`, not 0."""
    return jnp.maximum(jnp.sqrt(jnp.sum(x * x, _per_picture(x), keepdims=True)), _TINY)


def _per_picture(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _is_number(value: object) -> bool:
    """False for traced values and None."""
    return isinstance(value, (int, float))
