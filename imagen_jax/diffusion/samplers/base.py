"""What all samplers share: the interface, the grid of log-SNRs, the noise and the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.errors import UserError

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a denoiser says about noisy pictures.

    Attributes:
      x_hat: `[B, H, W, C]` float32, the predicted clean pictures, guided and thresholded.
    """

    x_hat: Array


# (z [B, H, W, C] float32, logsnr [B] float32) -> Prediction. Samplers work with any denoiser: a
# closed form, a guided network, two networks or a distilled one.
Denoiser = Callable[[Array, Array], Prediction]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interval:
    """One step of a grid, from the noise level t to the lower noise level s.

    Attributes:
      index: int32 scalar, the number of the step, from 0.
      logsnr_t, logsnr_s: float32 scalars, logsnr_s >= logsnr_t.
      is_last: bool scalar.
    """

    index: Array
    logsnr_t: Array
    logsnr_s: Array
    is_last: Array


class Sampler(Protocol):
    """A sampler: a frozen dataclass of its settings, registered as a JAX pytree.

    Real numbers among the settings are traced, so that a sweep over them compiles one program.

    Attributes:
      calls_per_step: how often a step calls the denoiser, which is nearly all of its cost.
      min_steps: the fewest steps with which the settings make sense.
    """

    calls_per_step: int
    min_steps: int

    def init(self, z: Array, grid: Array) -> Any:
        """The carry before the first step, for example the history of a multistep method.

        Args:
          z: `[B, H, W, C]` float32, the initial noise.
          grid: `[N + 1]` float32 log-SNRs, not decreasing.
        """
        ...

    def step(
        self, denoise: Denoiser, z: Array, carry: Any, interval: Interval, keys: Array
    ) -> tuple[Array, Array, Any]:
        """One step; it may call the denoiser more than once.

        Args:
          denoise: see `Denoiser`.
          z: `[B, H, W, C]` float32, at the noise level t.
          carry: from `init` or the step before.
          interval: see `Interval`.
          keys: `[B]` typed keys, one per picture; step `index` uses `draw_noise(keys, index, ...)`.

        Returns:
          z at the noise level s, x_hat that the step ended with (both `[B, H, W, C]` float32), and
          the carry.
        """
        ...


# (z, x_hat, interval) -> z, called after each step with z at s and x_hat; may change z.
Hook = Callable[[Array, Array, Interval], Array]


def uniform_grid(schedule: Schedule, num_steps: int) -> Array:
    """The log-SNRs at `num_steps + 1` uniform times from t = 1 to 0, both ends exact.

    Args:
      schedule: t -> logsnr.
      num_steps: steps of the sampler.

    Returns:
      `[num_steps + 1]` float32.

    Raises:
      UserError: `num_steps` below 1.
    """
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be at least 1")
    return schedule(jnp.linspace(1.0, 0.0, num_steps + 1, dtype=jnp.float32))


def draw_noise(keys: Array, index: Array | int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise. Each picture has its own key, so it is independent of the others.

    Args:
      keys: `[B]` typed keys, one per picture.
      index: folded into the keys; the number of the step in a sampler.
      shape: (H, W, C) of one picture.

    Returns:
      `[B, H, W, C]` float32.
    """

    def draw(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)

    return jax.vmap(draw)(keys)


def sample(
    denoise: Denoiser,
    z: Array,
    keys: Array,
    grid: Array,
    sampler: Sampler,
    hook: Hook | None = None,
) -> Array:
    """Runs a sampler over a grid of log-SNRs as one `jax.lax.scan`.

    The last step returns x_hat without noise.

    Args:
      denoise: see `Denoiser`.
      z: `[B, H, W, C]` float32 at the log-SNR `grid[0]`: standard normal noise, or a noised picture
        where the grid starts below the highest noise level.
      keys: `[B]` typed keys for the noise of the steps. Draw anything else from other keys.
      grid: `[N + 1]` float32, the log-SNRs of the N steps, not decreasing.
      sampler: see `Sampler`.
      hook: see `Hook`.

    Returns:
      x_hat `[B, H, W, C]` float32 of the last step, after the hook.

    Raises:
      UserError: the grid has no step.
    """
    num_steps = grid.shape[0] - 1
    if num_steps < 1:
        raise UserError(f"the grid has {grid.shape[0]} log-SNRs; a sampler needs at least 2")

    def step(state: tuple[Array, Any], index: Array) -> tuple[tuple[Array, Any], None]:
        return advance(denoise, state, index, keys, grid, sampler, hook), None

    start = z, sampler.init(z, grid)
    (x_hat, _), _ = jax.lax.scan(step, start, jnp.arange(num_steps))
    return x_hat


def advance(
    denoise: Denoiser,
    state: tuple[Array, Any],
    index: Array,
    keys: Array,
    grid: Array,
    sampler: Sampler,
    hook: Hook | None = None,
) -> tuple[Array, Any]:
    """One step of `sample`.

    Args:
      state: z and the carry of the sampler before the step.
      index: int32 scalar, the number of the step, from 0.
      denoise, keys, grid, sampler, hook: see `sample`.

    Returns:
      z and the carry after the step; z is x_hat after the last one.
    """
    z, carry = state
    interval = Interval(index, grid[index], grid[index + 1], index == grid.shape[0] - 2)
    z_s, x_hat, carry = sampler.step(denoise, z, carry, interval, keys)
    z = jnp.where(interval.is_last, x_hat, z_s)
    return (z if hook is None else hook(z, x_hat, interval)), carry
