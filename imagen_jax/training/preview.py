"""Pictures of a run while it trains: noisy pictures, their x_hat, and samples."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.data.pipeline import spread_items
from imagen_jax.data.source import Item, Source
from imagen_jax.denoiser import LowRes, network_denoiser
from imagen_jax.diffusion.augmentation import low_res_condition
from imagen_jax.diffusion.process import diffuse
from imagen_jax.diffusion.resize import downsample
from imagen_jax.parallel.mesh import replicated
from imagen_jax.parallel.placement import replicate
from imagen_jax.pictures import labelled_grid
from imagen_jax.sampling.loop import make_settings, picture_keys, sample_stage
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextSource
from imagen_jax.types import Array, Batch, Params, normalize_image, to_uint8

NUM_PICTURES = 8
PREVIEW_TIMES = (0.3, 0.5, 0.7, 0.9)
AUG_LEVEL = 0.1


class Previews:
    """Draws the pictures of one stage for some fixed items of its source.

    Args:
      stage: what is trained.
      source: where the items come from.
      encoder: the frozen text encoder, on the mesh.
      mesh: the devices; each draws all pictures.
      key: of the noise in the pictures that x_hat is predicted from.
    """

    def __init__(
        self,
        stage: Stage,
        source: Source,
        encoder: TextSource,
        mesh: Mesh,
        key: Array,
    ):
        self._stage, self._mesh, self._key = stage, mesh, key
        self._parts: list[_Part] = []
        number = 0
        items = spread_items(source, NUM_PICTURES)
        for _, group in itertools.groupby(items, lambda item: item.image.shape):
            part = list(group)
            seeds = np.int32(stage.cascade.seed) + np.arange(
                number, number + len(part), dtype=np.int32
            )
            self._parts.append(_make_part(part, seeds, encoder, mesh))
            number += len(part)
        grid = make_x_hat_grid(stage)
        self._grid = jax.jit(grid, out_shardings=replicated(mesh))

    def __call__(self, params: Params) -> dict[str, np.ndarray]:
        """The pictures "x_hat" and "samples", `[H, W, 3]` uint8, for `params` (the EMA).

        Where there are several shapes the names end with the width and height, as "x_hat_80x56".
        """
        pictures = {}
        for part in self._parts:
            height, width = part.batch.image.shape[1:3]
            name = f"_{width}x{height}" if len(self._parts) > 1 else ""
            x_hat = np.asarray(self._grid(params, part.batch, self._key))
            samples = sample_batch(self._stage, params, part.batch, part.seeds)
            # Every process reads the result.
            samples = np.asarray(jax.device_put(samples, replicated(self._mesh)))
            pictures[f"x_hat{name}"] = tile(x_hat)
            pictures[f"samples{name}"] = labelled_grid(samples[:, None], part.captions)
        return pictures


@dataclasses.dataclass(frozen=True)
class _Part:
    """The items of one shape."""

    batch: Batch
    captions: list[str]
    seeds: Array


def _make_part(items: list[Item], seeds: np.ndarray, encoder: TextSource, mesh: Mesh) -> _Part:
    captions = [item.caption for item in items]

    def everywhere(array: np.ndarray) -> Array:
        return replicate(array, mesh)

    text = encoder.embed(encoder.prepare(captions), everywhere)
    image = everywhere(np.stack([item.image for item in items]))
    return _Part(Batch(image=image, text=text), captions, everywhere(seeds))


def make_x_hat_grid(stage: Stage) -> Callable[[Params, Batch, Array], Array]:
    """`grid(params, batch, key) -> [rows, B, H, W, 3]` uint8.

    Rows: the clean pictures, for super-resolution the low-resolution condition, then z and x_hat
    for each of `PREVIEW_TIMES`. x_hat is informative long before samples are.
    """
    schedule = stage.schedule

    @jax.jit
    def grid(params: Params, batch: Batch, key: Array) -> Array:
        x = normalize_image(batch.image)
        rows = [x]
        noise_key, aug_key = jax.random.split(key)
        condition = None
        if stage.factor:
            small = downsample(x, stage.factor)
            aug_level = jnp.full(x.shape[:1], AUG_LEVEL)
            eps = jax.random.normal(aug_key, small.shape)
            low_res = low_res_condition(small, stage.factor, aug_level, eps)
            condition = LowRes(low_res, aug_level)
            rows.append(low_res)
        prediction = stage.config.diffusion.prediction
        denoise = network_denoiser(stage.network, params, batch.text, prediction, condition)
        eps = jax.random.normal(noise_key, x.shape)

        def at_time(t: Array) -> Array:
            logsnr = schedule(jnp.broadcast_to(t, x.shape[:1]))
            z = diffuse(x, eps, logsnr)
            return jnp.stack([z, denoise(z, logsnr).x_hat])

        # A loop, not a larger batch: one network to compile, whatever the number of times.
        pairs = jax.lax.map(at_time, jnp.array(PREVIEW_TIMES))
        return to_uint8(jnp.concatenate([jnp.stack(rows), pairs.reshape(-1, *x.shape)]))

    return grid


def sample_batch(stage: Stage, params: Params, batch: Batch, seeds: Array) -> Array:
    """Samples `[B, H, W, 3]` uint8 for the captions of `batch` with the stage's own settings.

    `seeds` `[B]` are of the noise. A super-resolution stage starts from the true pictures,
    down-sampled.
    """
    low_res = None
    if stage.factor:
        low_res = downsample(normalize_image(batch.image), stage.factor)
    settings = make_settings(stage.config.sample)
    shape = batch.image.shape[1:3]
    keys = picture_keys(seeds, 0)
    x = sample_stage(stage, params, batch.text, keys, settings, low_res, shape)
    return to_uint8(x)


def tile(pictures: np.ndarray) -> np.ndarray:
    """`[rows, columns, H, W, 3]` to one `[rows * H, columns * W, 3]` picture."""
    rows, columns, height, width, channels = pictures.shape
    return pictures.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
