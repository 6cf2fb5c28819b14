"""The loss on held-out pictures, with the same pictures, captions, times and noise at every step.

So its values can be compared between the steps of a run. They can also be compared between runs on
the same data with the same resolutions, prediction and weighting, whatever the seed, batch size or
mesh.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.data.buckets import load_stage_source
from imagen_jax.data.pipeline import spread_items
from imagen_jax.data.source import Item, Source
from imagen_jax.parallel.mesh import replicated
from imagen_jax.parallel.placement import BatchRows
from imagen_jax.stage import Stage
from imagen_jax.text.embedding_store import check_covers
from imagen_jax.text.encoder import TextSource
from imagen_jax.training.activities import Activities
from imagen_jax.training.feed import device_batches
from imagen_jax.training.step import (
    Draws,
    bucket_means,
    bucket_sums,
    make_loss_of_draws,
)
from imagen_jax.types import Array, Batch, Params, normalize_image

# Independent of the run's seed, so that runs can be compared.
SEED = 0
GOLDEN_RATIO = (5**0.5 - 1) / 2


class Validation:
    """The validation loss of one stage.

    Args:
      stage: the stage.
      encoder: the frozen text encoder, on the mesh.
      mesh: the devices.
      train_source: the training data of the stage.
      activities: show how far the validation is; they may end it.

    Attributes:
      note: the pictures of the validation, or why there is none, for the log.
      source: of the held-out pictures; None without validation.
    """

    def __init__(
        self,
        stage: Stage,
        encoder: TextSource,
        mesh: Mesh,
        train_source: Source,
        activities: Activities,
    ):
        train = stage.config.train
        self._encoder = encoder
        self._batch_size = train.batch_size
        self._rows = BatchRows(mesh, self._batch_size)
        self._activities = activities
        # Every process reads the result.
        sums = jax.jit(make_validation_sums(stage), out_shardings=replicated(mesh))
        self._sums = activities.program("the validation", sums)
        self._stage, self._number = stage, 0
        self.source: Source | None = None
        if not train.validate_every:
            self.note = "no validation (train.validate_every=0)"
            return
        self.source = load_stage_source(stage.cascade, stage.name, "held_out")
        self._number = min(train.validation_images, len(self.source))
        if not self._number:
            self.note = "no validation: the held-out split is empty"
            return
        needed = self._number if self.source.endless else len(self.source)
        check_covers(encoder, "held_out", needed, "the validation reads")
        self.note = f"validation on {self._number} held-out pictures"
        if not train_source.endless and len(self.source) == len(train_source):
            # The data set is too small to be split, see SplitRecords.
            self.note = (
                f"validation on {self._number} of the training pictures: too few to hold any out"
            )

    @functools.cached_property
    def _items(self) -> list[Item]:
        items = self._activities.call(
            "reading held-out pictures", lambda: spread_items(self.source, self._number)
        )
        return [Item(crop(item.image, self._stage), item.caption) for item in items]

    def __bool__(self) -> bool:
        return self._number > 0

    def __call__(self, params: Params) -> dict[str, float | dict[str, float]]:
        """The loss of `params` (the EMA), total and by log-SNR, as Python numbers.

        Raises:
          Stopped: the run is to stop.
        """
        numbers = list(self._numbers())
        batches = device_batches(self._host_batches(), self._encoder, self._rows)
        sums = []
        with contextlib.closing(batches):
            for rows in self._activities.each("validating", numbers, len(numbers)):
                batch, _ = next(batches)
                sums.append(self._sums(params, batch, *rows))
                # The batch before has been computed: few are queued when a signal comes.
                jax.block_until_ready(sums[-2:-1])
        total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *jax.device_get(sums))
        return {
            "validation_loss": float(total["bucket_loss"].sum() / len(self._items)),
            "validation_loss_by_logsnr": bucket_means(total),
        }

    def _host_batches(self) -> Iterator[dict[str, object]]:
        """Batches of this process's rows; the last one of each shape is filled up."""
        for index, weight in self._local_rows():
            first = index[0] - self._rows.local[0]
            items = [self._items[i if w else first] for i, w in zip(index, weight, strict=True)]
            yield {
                "image": np.stack([item.image for item in items]),
                "captions": [item.caption for item in items],
                "left_out": {},
            }

    def _numbers(self) -> Iterator[tuple[Array, Array]]:
        """The index `[B]` int32 and weight `[B]` of the rows; weight 0 fills up a batch."""
        for index, weight in self._local_rows():
            yield self._rows.global_array(index), self._rows.global_array(weight)

    def _local_rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Index and weight of this process's rows; items of one shape are consecutive."""
        end = 0
        for _, group in itertools.groupby(self._items, lambda item: item.image.shape):
            begin, end = end, end + len(list(group))
            for start in range(begin, end, self._batch_size):
                index = (start + self._rows.local).astype(np.int32)
                yield index, (index < end).astype(np.float32)


def make_validation_sums(
    stage: Stage,
) -> Callable[[Params, Batch, Array, Array], dict[str, Array]]:
    """`sums(params, batch, index, weight)`: "bucket_loss" and "bucket_count" `[5]` of a batch.

    `index` `[B]` int32 is the number of each picture in the whole set. It alone decides the noise
    and the time, which are spread evenly over [0, 1). `weight` `[B]` is 1, or 0 for rows that fill
    up the batch. No caption is dropped, and there is no dropout.
    """
    loss_of_draws = make_loss_of_draws(stage)
    factor = stage.factor

    def draw(index: Array, shape: tuple[int, ...]) -> Draws:
        key = jax.random.fold_in(jax.random.key(SEED), index)
        noise_key, aug_key, aug_noise_key = jax.random.split(key, 3)
        # Multiples of the golden ratio: neighbours, which may be similar, get distant times.
        t = (index * GOLDEN_RATIO + 0.5) % 1.0
        draws = Draws(t=t, eps=jax.random.normal(noise_key, shape))
        if factor:
            small = (shape[0] // factor, shape[1] // factor, shape[2])
            draws = draws.replace(
                aug_level=jax.random.uniform(aug_key),
                aug_eps=jax.random.normal(aug_noise_key, small),
            )
        return draws

    def sums(params: Params, batch: Batch, index: Array, weight: Array) -> dict[str, Array]:
        x = normalize_image(batch.image)
        draws = jax.vmap(lambda i: draw(i, x.shape[1:]))(index)
        per_example, logsnr = loss_of_draws(params, x, batch.text, draws)
        bucket_loss, bucket_count = bucket_sums(per_example, logsnr, weight)
        return {"bucket_loss": bucket_loss, "bucket_count": bucket_count}

    return sums


def crop(image: np.ndarray, stage: Stage) -> np.ndarray:
    """The central crop of `[H, W, 3]` at a multiple of the factor; all if not trained on crops."""
    size = stage.config.train.crop_size
    if not size:
        return image
    factor = stage.factor
    top, left = ((side - size) // 2 // factor * factor for side in image.shape[:2])
    return image[top : top + size, left : left + size]
