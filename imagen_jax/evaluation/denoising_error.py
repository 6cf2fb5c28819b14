"""Mean squared error of x_hat at fixed noise levels.

The losses of two runs cannot be compared if the runs differ in prediction type or loss weighting.
This error can, and it tells runs apart after a few thousand pictures, long before pictures match
their captions.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.denoiser import LowRes, network_denoiser
from imagen_jax.diffusion.augmentation import low_res_condition
from imagen_jax.diffusion.process import diffuse
from imagen_jax.diffusion.resize import downsample
from imagen_jax.stage import Stage
from imagen_jax.types import Array, Params, TextCond, normalize_image

LOGSNRS = (-5, -4, -3, -2, -1, 0, 1, 2, 4)


def denoising_error(
    stage: Stage, params: Params, text: TextCond, images: np.ndarray, batch_size: int
) -> dict[str, float]:
    """The error of a stage on true pictures, without guidance and thresholding.

    Args:
      stage: a super-resolution stage gets the pictures, down-sampled, with the aug_level of its
        sampling settings.
      params: of its network.
      text: captions of the pictures, batch size N.
      images: `[N, H, W, 3]` uint8.
      batch_size: pictures at once.

    Returns:
      By log-SNR, as text such as "-5": the mean of (x_hat - x)^2 over pictures in [-1, 1]. The
      noise of a picture follows from its number alone.
    """
    size = min(batch_size, len(images))
    total = np.zeros(len(LOGSNRS))
    errors = jax.jit(functools.partial(_errors, stage))
    for start in range(0, len(images), size):
        # The last batch is filled up with the last picture, so that nothing recompiles.
        rows = np.arange(start, start + size)
        index = np.minimum(rows, len(images) - 1)
        batch_text = jax.tree.map(lambda leaf, i=index: jnp.asarray(leaf)[i], text)
        each = errors(params, batch_text, jnp.asarray(images[index]), jnp.asarray(index))
        total += np.asarray(each, np.float64)[:, rows < len(images)].sum(axis=1)
    return {str(level): float(e / len(images)) for level, e in zip(LOGSNRS, total, strict=True)}


def _errors(stage: Stage, params: Params, text: TextCond, images: Array, index: Array) -> Array:
    """`[levels, B]`: the error of each picture."""
    x = normalize_image(images)

    def noise(number: int, shape: tuple[int, ...]) -> Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(number), i))(index)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    condition = None
    if stage.factor:
        small = downsample(x, stage.factor)
        aug_level = jnp.full(len(x), stage.config.sample.aug_level)
        noisy = low_res_condition(small, stage.factor, aug_level, noise(1, small.shape[1:]))
        condition = LowRes(noisy, aug_level)
    prediction = stage.config.diffusion.prediction
    denoise = network_denoiser(stage.network, params, text, prediction, condition)
    eps = noise(0, x.shape[1:])

    def at_level(level: Array) -> Array:
        logsnr = jnp.full(len(x), level)
        x_hat = denoise(diffuse(x, eps, logsnr), logsnr).x_hat
        return jnp.mean(jnp.square(x_hat - x), axis=(1, 2, 3))

    return jax.lax.map(at_level, jnp.array(LOGSNRS, jnp.float32))
