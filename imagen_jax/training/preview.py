"""Pictures of a run while it trains: what the network sees, what it makes of it, and samples."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.config import StageConfig
from imagen_jax.data.pipeline import spread_items
from imagen_jax.data.source import Item, Source
from imagen_jax.diffusion import augmentation, process, schedules
from imagen_jax.models import apply_model, project_text
from imagen_jax.parallel.mesh import replicated
from imagen_jax.parallel.placement import replicate
from imagen_jax.pictures import labelled_grid
from imagen_jax.sampling.loop import make_settings, picture_keys, sample_stage
from imagen_jax.text.encoder import TextSource
from imagen_jax.training.step import low_res_condition
from imagen_jax.types import Array, Batch, Params, normalize_image, to_uint8

NUM_PICTURES = 8
PREVIEW_TIMES = (0.3, 0.5, 0.7, 0.9)
AUG_LEVEL = 0.1


class Previews:
    """Draws the pictures of one stage for some fixed items of its source.

    Args:
      stage, model: the stage and its network.
      source: where the items come from.
      encoder: the frozen text encoder, on the mesh.
      mesh: the devices; each draws all pictures.
      key: of the noise that x_hat is seen through.
      seed: of the samples.
    """

    def __init__(
        self,
        stage: StageConfig,
        model: nn.Module,
        source: Source,
        encoder: TextSource,
        mesh: Mesh,
        key: Array,
        seed: int,
    ):
        self._stage, self._model, self._mesh, self._key = stage, model, mesh, key
        self._parts: list[_Part] = []
        number = 0
        items = spread_items(source, NUM_PICTURES)
        for _, group in itertools.groupby(items, lambda item: item.image.shape):
            part = list(group)
            seeds = np.int32(seed) + np.arange(number, number + len(part), dtype=np.int32)
            self._parts.append(_make_part(part, seeds, encoder, mesh))
            number += len(part)
        grid = make_x_hat_grid(stage, model)
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
            samples = sample_batch(self._stage, self._model, params, part.batch, part.seeds)
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


def make_x_hat_grid(
    stage: StageConfig, model: nn.Module
) -> Callable[[Params, Batch, Array], Array]:
    """`grid(params, batch, key) -> [rows, B, H, W, 3]` uint8.

    Rows: the clean pictures, for super-resolution the low-resolution condition, then z and x_hat
    for each of `PREVIEW_TIMES`. x_hat is informative long before samples are.
    """
    schedule = schedules.make_schedule(stage.diffusion, stage.resolution)
    factor = stage.resolution // stage.low_resolution if stage.low_resolution else 0

    @jax.jit
    def grid(params: Params, batch: Batch, key: Array) -> Array:
        x = normalize_image(batch.image)
        rows = [x]
        features = project_text(model, params, batch.text)
        noise_key, aug_key = jax.random.split(key)
        low_res = aug_level = None
        if factor:
            small = augmentation.downsample(x, factor).shape
            aug_level = jnp.full(x.shape[:1], AUG_LEVEL)
            low_res = low_res_condition(x, factor, aug_level, jax.random.normal(aug_key, small))
            rows.append(low_res)
        eps = jax.random.normal(noise_key, x.shape)

        def at_time(t: Array) -> Array:
            logsnr = schedule(jnp.broadcast_to(t, x.shape[:1]))
            z = process.diffuse(x, eps, logsnr)
            prediction = apply_model(
                model, params, z, logsnr, features, low_res=low_res, aug_level=aug_level
            )
            x_hat = process.predict_x(prediction, z, logsnr, stage.diffusion.prediction)
            return jnp.stack([z, x_hat])

        # A loop, not a larger batch: one network to compile, whatever the number of times.
        pairs = jax.lax.map(at_time, jnp.array(PREVIEW_TIMES))
        return to_uint8(jnp.concatenate([jnp.stack(rows), pairs.reshape(-1, *x.shape)]))

    return grid


def sample_batch(
    stage: StageConfig, model: nn.Module, params: Params, batch: Batch, seeds: Array
) -> Array:
    """Samples `[B, H, W, 3]` uint8 for the captions of `batch` with the stage's own settings.

    `seeds` `[B]` are of the noise. A super-resolution stage starts from the true pictures,
    down-sampled.
    """
    keys = picture_keys(seeds, 0)
    low_res = None
    if stage.low_resolution:
        factor = stage.resolution // stage.low_resolution
        low_res = augmentation.downsample(normalize_image(batch.image), factor)
    settings = make_settings(stage.sample)
    shape = batch.image.shape[1:3]
    x = sample_stage(model, stage, params, batch.text, keys, settings, low_res, shape)
    return to_uint8(x)


def tile(pictures: np.ndarray) -> np.ndarray:
    """`[rows, columns, H, W, 3]` to one `[rows * H, columns * W, 3]` picture."""
    rows, columns, height, width, channels = pictures.shape
    return pictures.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
