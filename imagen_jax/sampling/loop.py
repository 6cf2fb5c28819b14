"""Sampling from one stage: the whole loop over the grid of log-SNRs as one jitted program.

The text is projected to keys and values once, before the loop. Without guidance (a weight of 1)
there are no unconditional rows. All numbers in `SampleSettings` are traced: sweeps over them do not
recompile.

All noise of a picture comes from its own key, so a picture depends neither on its neighbours nor on
the batch that it is drawn in.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from imagen_jax.config import DiffusionConfig, SampleConfig
from imagen_jax.denoiser import NO_REFERENCES, LowRes, References, network_denoiser
from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.augmentation import low_res_condition
from imagen_jax.diffusion.grids import Grid
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.samplers import Sampler
from imagen_jax.diffusion.thresholding import NoThreshold, Threshold
from imagen_jax.errors import UserError
from imagen_jax.parallel.compiler import compiler_options
from imagen_jax.sampling.repaint import StageEdit, draw_edited
from imagen_jax.sampling.tiles import Tiles, tiled_denoiser
from imagen_jax.stage import Stage
from imagen_jax.types import Array, Params, TextCond

# Each purpose has its own key under the key of the picture.
INITIAL_NOISE, STEP_NOISE, LOW_RES_NOISE = range(3)


@flax.struct.dataclass
class SampleSettings:
    """`SampleConfig` as arguments of a program: numbers are traced, the rest is static.

    Attributes:
      sampler, threshold, grid: dataclasses whose numbers are float32 scalars.
      guidance: likewise, with None for what does nothing; None where all of it does nothing.
      aug_level: float32 scalar.
      num_steps: static.
    """

    sampler: Sampler
    guidance: Guidance | None
    threshold: Threshold
    aug_level: Array
    grid: Grid
    num_steps: int = flax.struct.field(pytree_node=False)


def make_settings(config: SampleConfig, *, has_guide: bool = False) -> SampleSettings:
    """Turns settings into arguments of a program.

    Args:
      config: the settings.
      has_guide: whether there are guide weights, see `References`.
    """
    guidance = config.guidance.without_idle_parts()
    if guidance.weight is None and not (has_guide and guidance.guide_weight is not None):
        guidance = None
    settings = SampleSettings(
        sampler=config.sampler,
        guidance=guidance,
        threshold=config.threshold,
        aug_level=config.aug_level,
        grid=config.grid,
        num_steps=config.num_steps,
    )
    return jax.tree.map(jnp.float32, settings)


def sample_stage(
    stage: Stage,
    params: Params,
    text: TextCond,
    keys: Array,
    settings: SampleSettings,
    low_res: Array | None = None,
    shape: tuple[int, int] | None = None,
    references: References = NO_REFERENCES,
    compiling: contextlib.AbstractContextManager[None] | None = None,
    edit: StageEdit | None = None,
    tiles: Tiles | None = None,
) -> Array:
    """Draws one picture per row of `text`.

    Compiled once per network, diffusion, batch size, shape and static settings. It has compiler
    options of its own, so it cannot be called inside another `jax.jit` on a CPU.

    Args:
      stage: what to draw with.
      params: of its network, usually the EMA.
      text: captions, batch size B.
      keys: `[B]` typed keys, one per picture; see `picture_keys`.
      settings: see `make_settings`.
      low_res: `[B, h, w, 3]` float32 clean pictures in [-1, 1] at the stage's low resolution, for
        a super-resolution stage. Noise of level `settings.aug_level` is added once, at this
        resolution, before it is up-sampled (Imagen section 2.4).
      shape: (H, W) of the pictures; default: the square of the stage's resolution. `low_res` is
        smaller by the factor of the stage.
      references: a negative prompt and guide weights.
      compiling: entered while the program is compiled, to tell that time from the time of drawing.
      edit: a picture of `shape` that the drawing starts from or keeps parts of.
      tiles: the windows that the network sees, if they are smaller than the picture.

    Returns:
      `[B, H, W, 3]` float32, x_hat of the last step; in [-1, 1] unless thresholding is "none".

    Raises:
      UserError: `low_res` is missing, superfluous or of another size.
    """
    batch = text.mask.shape[0]
    shape = shape or (stage.config.resolution, stage.config.resolution)
    if stage.factor:
        height, width = (side // stage.factor for side in shape)
        if low_res is None or low_res.shape != (batch, height, width, 3):
            given = "none is given" if low_res is None else f"shape {low_res.shape} is given"
            raise UserError(
                f"this super-resolution stage needs {batch} low-resolution pictures of "
                f"{height}x{width}x3; {given}"
            )
    elif low_res is not None:
        raise UserError("a base stage takes no low-resolution picture")
    arguments = (params, text, keys, settings, low_res, references, edit)
    static = static_arguments(stage, shape, tiles)
    if compiling is not None:
        with compiling:
            # The call below finds what is compiled here.
            sampler_program().lower(*arguments, **static).compile()
    return sampler_program()(*arguments, **static)


def static_arguments(
    stage: Stage, shape: tuple[int, int], tiles: Tiles | None = None
) -> dict[str, object]:
    """The static arguments of `sampler_program` for pictures of `shape` (H, W)."""
    return {
        "network": stage.network,
        "diffusion": stage.config.diffusion,
        "resolution": stage.config.resolution,
        "shape": shape,
        # One window is no tiling: the same program, and the same bits.
        "tiles": None if tiles is None or tiles.covers(shape) else tiles,
    }


def picture_keys(seeds: Array, stage_index: int) -> Array:
    """`[B]` keys from `[B]` integer seeds and the place of the stage in the cascade."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), stage_index))(seeds)


@functools.cache
def sampler_program(device: jax.Device | None = None) -> Callable[..., Array]:
    """`_sample`, jitted for one kind of device (default: this machine's).

    Made at the first call, since its options depend on the device.
    """
    return jax.jit(
        _sample,
        static_argnames=("network", "diffusion", "resolution", "shape", "tiles"),
        compiler_options=compiler_options(device or jax.devices()[0]),
    )


def _sample(
    params: Params,
    text: TextCond,
    keys: Array,
    settings: SampleSettings,
    low_res: Array | None,
    references: References = NO_REFERENCES,
    edit: StageEdit | None = None,
    *,
    network: nn.Module,
    diffusion: DiffusionConfig,
    resolution: int,
    shape: tuple[int, int],
    tiles: Tiles | None = None,
) -> Array:
    grid = settings.grid.at(diffusion.schedule.at(resolution), settings.num_steps)
    denoise = make_denoiser(
        params, text, keys, settings, low_res, network, diffusion, shape, grid, references, tiles
    )
    noise, noise_keys = initial_noise(keys, shape), step_keys(keys)
    if edit is not None:
        return draw_edited(denoise, edit, noise, noise_keys, grid, settings.sampler)
    return samplers.sample(denoise, noise, noise_keys, grid, settings.sampler)


def make_denoiser(
    params: Params,
    text: TextCond,
    keys: Array,
    settings: SampleSettings,
    low_res: Array | None,
    network: nn.Module,
    diffusion: DiffusionConfig,
    shape: tuple[int, int],
    grid: Array,
    references: References = NO_REFERENCES,
    tiles: Tiles | None = None,
) -> samplers.Denoiser:
    """The denoiser of `sample_stage`, with the noise of the low-resolution condition.

    `grid` are the log-SNRs of the sampler, for a guidance that changes over the steps.
    """
    condition = None
    if low_res is not None:
        eps = samplers.draw_noise(keys, LOW_RES_NOISE, low_res.shape[1:])
        aug_level = jnp.broadcast_to(settings.aug_level, (low_res.shape[0],))
        factor = shape[0] // low_res.shape[1]
        condition = LowRes(low_res_condition(low_res, factor, aug_level, eps), aug_level)

    def denoiser(condition: LowRes | None, threshold: Threshold) -> samplers.Denoiser:
        return network_denoiser(
            network,
            params,
            text,
            diffusion.prediction,
            condition,
            guidance=settings.guidance,
            threshold=threshold,
            references=references,
            grid=grid,
        )

    if tiles is None:
        return denoiser(condition, settings.threshold)
    return tiled_denoiser(
        lambda window: denoiser(window, NoThreshold()),
        condition,
        settings.threshold,
        tiles,
        shape,
    )


def initial_noise(keys: Array, shape: tuple[int, int]) -> Array:
    """`[B, H, W, 3]` standard normal noise that the pictures start from."""
    return samplers.draw_noise(keys, INITIAL_NOISE, (*shape, 3))


def step_keys(keys: Array) -> Array:
    """`[B]` keys for the noise of the sampler's steps."""
    return jax.vmap(lambda key: jax.random.fold_in(key, STEP_NOISE))(keys)
