"""Drawing that starts from a picture (SDEdit) or keeps parts of it (RePaint).

SDEdit (Meng et al. 2022): the picture is noised to a level within the grid, and sampling goes on
from there. RePaint (Lugmayr et al. 2022): after each step the kept pixels are replaced by the
noised picture; to let both parts agree, noise is added again and the steps are repeated.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.process import diffuse
from imagen_jax.diffusion.samplers import Denoiser, Hook, Interval, Sampler
from imagen_jax.diffusion.schedules import alpha_sigma
from imagen_jax.types import Array

# Folded into the keys of the steps, apart from the numbers of the steps.
KEPT_NOISE, JUMP_NOISE, PASS_NOISE = 2**31, 2**31 + 1, 2**31 + 2


@flax.struct.dataclass
class StageEdit:
    """What the pictures of a stage start from and keep.

    Attributes:
      picture: `[H, W, 3]` float32 in [-1, 1], the same for all pictures of a batch.
      keep: `[H, W, 1]` bool, True for pixels that stay as they are; None: none of them.
      skip: static; the steps of the grid, from the noisiest on, that are left out. 0 starts from
        pure noise.
      resample: static; how often a run of steps is drawn (r of RePaint), at least 1.
      jump: static; steps of a run (the jump length j of RePaint), at least 1. If the runs do not
        fill the grid, the first, noisiest one is shorter.
    """

    picture: Array
    keep: Array | None = None
    skip: int = flax.struct.field(pytree_node=False, default=0)
    resample: int = flax.struct.field(pytree_node=False, default=1)
    jump: int = flax.struct.field(pytree_node=False, default=1)


def draw_edited(
    denoise: Denoiser, edit: StageEdit, noise: Array, keys: Array, grid: Array, sampler: Sampler
) -> Array:
    """Draws as `samplers.sample` does, from and around a picture.

    Args:
      denoise: see `samplers.Denoiser`.
      edit: see `StageEdit`.
      noise: `[B, H, W, 3]` float32, standard normal.
      keys: `[B]` typed keys for the noise of the steps.
      grid: `[N + 1]` float32 log-SNRs of the whole grid, not decreasing.
      sampler: see `samplers.Sampler`.

    Returns:
      x_hat `[B, H, W, 3]` float32 of the last step; kept pixels are those of the picture.

    Raises:
      UserError: all steps are skipped.
    """
    picture = jnp.broadcast_to(edit.picture, noise.shape)
    grid = grid[edit.skip :]
    noised = diffuse(picture, noise, grid[0])
    z = noised if edit.skip else noise
    if edit.keep is None:
        return samplers.sample(denoise, z, keys, grid, sampler)
    keep = jnp.broadcast_to(edit.keep, noise.shape)
    z = jnp.where(keep, noised, z)
    if edit.resample == 1:
        return samplers.sample(denoise, z, keys, grid, sampler, _keeping(picture, keep, keys))
    return _resampled(denoise, edit, z, picture, keep, keys, grid, sampler)


def resampling_moves(num_steps: int, jump: int, resample: int) -> np.ndarray:
    """The steps of RePaint in their order.

    The grid is cut into runs of `jump` steps. Each is drawn `resample` times; between two of its
    passes noise brings z from its end back to its start.

    Returns:
      `[M, 5]` int32; a row is a step: its number; the first step of its run, and the first after
      it; the number of the pass over all runs; 1 where noise is added first, else 0.
    """
    first = num_steps % jump or jump
    starts = [0, *range(first, num_steps, jump)]
    moves = []
    for run, (start, end) in enumerate(zip(starts, [*starts[1:], num_steps], strict=True)):
        for repeat in range(resample):
            number = run * resample + repeat
            moves += [(i, start, end, number, repeat > 0 and i == start) for i in range(start, end)]
    return np.array(moves, np.int32)


def renoise(z: Array, logsnr_s: Array, logsnr_t: Array, noise: Array) -> Array:
    """A draw of q(z_t | z_s), from the noise level s back to the higher level t (App. A).

    Args:
      z, noise: `[B, H, W, C]` float32.
      logsnr_s, logsnr_t: scalars, logsnr_t <= logsnr_s.

    Returns:
      `[B, H, W, C]` float32.
    """
    alpha_s, _ = alpha_sigma(logsnr_s)
    alpha_t, sigma_t = alpha_sigma(logsnr_t)
    return alpha_t / alpha_s * z + jnp.sqrt(-jnp.expm1(logsnr_t - logsnr_s)) * sigma_t * noise


def _keeping(picture: Array, keep: Array, keys: Array) -> Hook:
    """A hook that puts the noised picture in the place of the kept pixels."""
    keys = _fold(keys, KEPT_NOISE)

    def hook(z: Array, x_hat: Array, interval: Interval) -> Array:
        del x_hat
        noise = samplers.draw_noise(keys, interval.index, z.shape[1:])
        noised = diffuse(picture, noise, interval.logsnr_s)
        return jnp.where(keep, jnp.where(interval.is_last, picture, noised), z)

    return hook


def _resampled(
    denoise: Denoiser,
    edit: StageEdit,
    z: Array,
    picture: Array,
    keep: Array,
    keys: Array,
    grid: Array,
    sampler: Sampler,
) -> Array:
    num_steps = grid.shape[0] - 1
    jump = min(edit.jump, num_steps)

    def step(state: tuple[Array, Any], move: Array) -> tuple[tuple[Array, Any], None]:
        z, carry = state
        index, start, end, number, again = move
        run_keys = _fold(_fold(keys, PASS_NOISE), number)
        noise = samplers.draw_noise(run_keys, JUMP_NOISE, z.shape[1:])
        z = jnp.where(again == 1, renoise(z, grid[end], grid[start], noise), z)
        # A run is a sampling of its own: the history of a multistep sampler ends with it.
        begun = sampler.init(z, jax.lax.dynamic_slice(grid, (start,), (jump + 1,)))
        carry = jax.tree.map(lambda new, old: jnp.where(index == start, new, old), begun, carry)
        is_last = index == num_steps - 1
        interval = Interval(index - start, grid[index], grid[index + 1], is_last)
        z_s, x_hat, carry = sampler.step(denoise, z, carry, interval, run_keys)
        z = jnp.where(is_last, x_hat, z_s)
        return (_keeping(picture, keep, run_keys)(z, x_hat, interval), carry), None

    moves = jnp.asarray(resampling_moves(num_steps, jump, edit.resample))
    start = z, sampler.init(z, grid[: jump + 1])
    (x_hat, _), _ = jax.lax.scan(step, start, moves)
    return x_hat


def _fold(keys: Array, number: Array | int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
