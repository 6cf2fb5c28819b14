"""Sampling from one stage: the whole loop over the time grid as one jitted program.

The text is projected to keys and values once, before the loop. Each step is one pass through the
network with conditional and unconditional rows interleaved (row 2i is conditional, 2i + 1 not),
so that a batch that is sharded over devices stays where it is; without guidance (w = 1) there are
no unconditional rows. Everything numeric in `SampleSettings` is traced: sweeps over it do not
recompile.

All noise of a picture comes from its own key, so it depends neither on its neighbours nor on the
batch that it is drawn in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from imagen_jax.config import DiffusionConfig, SampleConfig, StageConfig, validate_sample
from imagen_jax.diffusion import augmentation, guidance, process, samplers, schedules, thresholding
from imagen_jax.errors import UserError
from imagen_jax.models import apply_model, project_text
from imagen_jax.parallel.compiler import compiler_options
from imagen_jax.types import Array, Params, TextCond, null_text

# Each purpose has its own key under the key of the picture.
INITIAL_NOISE, STEP_NOISE, LOW_RES_NOISE = range(3)


@flax.struct.dataclass
class SampleSettings:
    """`SampleConfig` for a program: scalars traced, choices that change the program static.

    Attributes: see `SampleConfig`.
    """

    guidance_weight: Array
    percentile: Array
    threshold_cap: Array
    eta: Array
    gamma: Array
    aug_level: Array
    guided: bool = flax.struct.field(pytree_node=False)
    sampler: str = flax.struct.field(pytree_node=False)
    num_steps: int = flax.struct.field(pytree_node=False)
    threshold: str = flax.struct.field(pytree_node=False)


def make_settings(config: SampleConfig, name: str = "settings") -> SampleSettings:
    """Validates `config` (called `name` in messages) and turns it into program arguments.

    Raises:
      UserError: a value out of range, such as a percentile of 0.995.
    """
    validate_sample(name, config)
    if not math.isfinite(config.guidance_weight):
        raise UserError(f"{name}.guidance_weight={config.guidance_weight} must be finite")
    return SampleSettings(
        guidance_weight=jnp.float32(config.guidance_weight),
        percentile=jnp.float32(config.percentile),
        threshold_cap=jnp.float32(config.threshold_cap),
        eta=jnp.float32(config.eta),
        gamma=jnp.float32(config.gamma),
        aug_level=jnp.float32(config.aug_level),
        guided=config.guidance_weight != 1.0,
        sampler=config.sampler,
        num_steps=config.num_steps,
        threshold=config.threshold,
    )


def sample_stage(
    model: nn.Module,
    stage: StageConfig,
    params: Params,
    text: TextCond,
    keys: Array,
    settings: SampleSettings,
    low_res: Array | None = None,
    shape: tuple[int, int] | None = None,
) -> Array:
    """Draws one picture per row of `text`.

    Compiled once per model, stage, batch size, shape and static settings. It has compiler options
    of its own, so it cannot be called inside another `jax.jit` on a CPU.

    Args:
      model: the network of `stage`.
      stage: resolution and diffusion are used.
      params: of the network, usually the EMA.
      text: captions, batch size B.
      keys: `[B]` typed keys, one per picture; see `picture_keys`.
      settings: see `make_settings`.
      low_res: `[B, h, w, 3]` float32 clean pictures in [-1, 1] at `stage.low_resolution`, for a
        super-resolution stage. Noise of level `settings.aug_level` is added once, at this
        resolution, before it is up-sampled (Imagen section 2.4).
      shape: (H, W) of the pictures; default: the square of the stage's resolution. `low_res` is
        smaller by the factor of the stage.

    Returns:
      `[B, H, W, 3]` float32, x_hat of the last step; in [-1, 1] unless thresholding is "none".

    Raises:
      UserError: `low_res` is missing, superfluous or of another size.
    """
    low = stage.low_resolution
    batch = text.mask.shape[0]
    shape = shape or (stage.resolution, stage.resolution)
    if low:
        height, width = (side * low // stage.resolution for side in shape)
        if low_res is None or low_res.shape != (batch, height, width, 3):
            given = "none is given" if low_res is None else f"shape {low_res.shape} is given"
            raise UserError(
                f"this super-resolution stage needs {batch} low-resolution pictures of "
                f"{height}x{width}x3; {given}"
            )
    if not low and low_res is not None:
        raise UserError("a base stage takes no low-resolution picture")
    return sampler_program()(
        params,
        text,
        keys,
        settings,
        low_res,
        model=model,
        diffusion=stage.diffusion,
        resolution=stage.resolution,
        shape=shape,
    )


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
        static_argnames=("model", "diffusion", "resolution", "shape"),
        compiler_options=compiler_options(device or jax.devices()[0]),
    )


def _sample(
    params: Params,
    text: TextCond,
    keys: Array,
    settings: SampleSettings,
    low_res: Array | None,
    *,
    model: nn.Module,
    diffusion: DiffusionConfig,
    resolution: int,
    shape: tuple[int, int],
) -> Array:
    doubled = _interleave if settings.guided else lambda a, b: a
    features = project_text(model, params, jax.tree.map(doubled, text, null_text(text)))
    condition = {}
    if low_res is not None:
        eps = samplers.draw_noise(keys, LOW_RES_NOISE, low_res.shape[1:])
        aug_level = jnp.broadcast_to(settings.aug_level, (low_res.shape[0],))
        noisy = augmentation.noise_low_res(low_res, aug_level, eps)
        noisy = augmentation.upsample(noisy, shape[0] // low_res.shape[1])
        condition = {
            "low_res": doubled(noisy, noisy),
            "aug_level": doubled(aug_level, aug_level),
        }

    def denoise(z: Array, logsnr: Array) -> Array:
        prediction = apply_model(
            model, params, doubled(z, z), doubled(logsnr, logsnr), features, **condition
        )
        if settings.guided:
            conditional, unconditional = prediction[0::2], prediction[1::2]
            prediction = guidance.guide(conditional, unconditional, settings.guidance_weight)
        x_hat = process.predict_x(prediction, z, logsnr, diffusion.prediction)
        return thresholding.threshold(
            x_hat, settings.threshold, settings.percentile, settings.threshold_cap
        )

    z_1 = samplers.draw_noise(keys, INITIAL_NOISE, (*shape, 3))
    return samplers.sample(
        denoise,
        z_1,
        jax.vmap(lambda key: jax.random.fold_in(key, STEP_NOISE))(keys),
        schedules.make_schedule(diffusion, resolution),
        settings.num_steps,
        _step(settings),
    )


def _step(settings: SampleSettings) -> Callable[..., Array]:
    """The sampler's move from z_t to z_s."""
    if settings.sampler == "ddim":
        return functools.partial(samplers.ddim_step, eta=settings.eta)
    if settings.sampler == "ancestral":
        return functools.partial(samplers.ancestral_step, gamma=settings.gamma)
    raise UserError(f"sampler={settings.sampler!r} must be one of ddim, ancestral")


def _interleave(a: Array, b: Array) -> Array:
    """`[B, ...]` and `[B, ...]` to `[2B, ...]`: a_0, b_0, a_1, b_1, ..."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
