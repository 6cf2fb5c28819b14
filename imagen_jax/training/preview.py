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
from imagen_jax.sampling.loop import make_settings, picture_keys
from imagen_jax.sampling.stepwise import sample_programs
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextSource
from imagen_jax.training.activities import Activities
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
      activities: show how far the drawing is.
    """

    def __init__(
        self,
        stage: Stage,
        source: Source,
        encoder: TextSource,
        mesh: Mesh,
        key: Array,
        activities: Activities,
    ):
        self._stage, self._key, self._activities = stage, key, activities
        self._parts: list[_Part] = []
        number = 0
        items = spread_items(source, NUM_PICTURES)
        for _, group in itertools.groupby(items, lambda item: item.image.shape):
            part = list(group)
            seeds = np.int32(stage.cascade.seed) + np.arange(
                number, number + len(part), dtype=np.int32
            )
            self._parts.append(_make_part(part, seeds, stage.factor, encoder, mesh))
            number += len(part)
        everywhere = replicated(mesh)
        grid = jax.jit(make_x_hat_grid(stage), out_shardings=everywhere)
        self._grid = activities.program("the preview", grid)
        start, step = sample_programs(stage, everywhere)
        self._start = activities.program("the noise of samples", start)
        self._step = activities.program("the sampler", step)

    def __call__(self, params: Params) -> dict[str, np.ndarray]:
        """The pictures "x_hat" and "samples", `[H, W, 3]` uint8, for `params` (the EMA).

        Where there are several shapes the names end with the width and height, as "x_hat_80x56".

        Raises:
          Stopped: the run is to stop.
        """
        pictures = {}
        for part in self._parts:
            height, width = part.batch.image.shape[1:3]
            name = f"_{width}x{height}" if len(self._parts) > 1 else ""
            x_hat = np.asarray(self._grid(params, part.batch, self._key))
            samples = np.asarray(self._sample(params, part))
            pictures[f"x_hat{name}"] = tile(x_hat)
            pictures[f"samples{name}"] = labelled_grid(samples[:, None], part.captions)
        return pictures

    def _sample(self, params: Params, part: _Part) -> Array:
        """Samples `[B, H, W, 3]` uint8 for the captions, with the stage's own settings.

        A super-resolution stage starts from the true pictures, down-sampled.
        """
        settings = make_settings(self._stage.config.sample)
        shape = part.batch.image.shape[1:3]
        state = self._start(part.keys, settings, shape=shape)
        steps = range(settings.num_steps)
        for index in self._activities.each("drawing samples", steps, len(steps)):
            state = self._step(
                params,
                part.batch.text,
                part.keys,
                settings,
                part.low_res,
                state,
                np.int32(index),
                shape=shape,
            )
            # So that a signal need not wait for all the steps that would be queued.
            jax.block_until_ready(state)
        return to_uint8(state[0])


@dataclasses.dataclass(frozen=True)
class _Part:
    """The items of one shape."""

    batch: Batch
    captions: list[str]
    keys: Array
    low_res: Array | None


def _make_part(
    items: list[Item], seeds: np.ndarray, factor: int, encoder: TextSource, mesh: Mesh
) -> _Part:
    captions = [item.caption for item in items]

    def everywhere(array: np.ndarray) -> Array:
        return replicate(array, mesh)

    text = encoder.embed(encoder.prepare(captions), everywhere)
    image = everywhere(np.stack([item.image for item in items]))
    make_keys = jax.jit(lambda seeds: picture_keys(seeds, 0), out_shardings=replicated(mesh))
    make_small = jax.jit(
        lambda image: downsample(normalize_image(image), factor), out_shardings=replicated(mesh)
    )
    return _Part(
        batch=Batch(image=image, text=text),
        captions=captions,
        keys=make_keys(everywhere(seeds)),
        low_res=make_small(image) if factor else None,
    )


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


def tile(pictures: np.ndarray) -> np.ndarray:
    """`[rows, columns, H, W, 3]` to one `[rows * H, columns * W, 3]` picture."""
    rows, columns, height, width, channels = pictures.shape
    return pictures.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
