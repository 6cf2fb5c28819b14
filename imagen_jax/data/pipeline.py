"""From a source to batches: order, reading ahead, replacement of what cannot be read.

Which item stands at position p of a run is a pure function of (seed, p): Grain shuffles the
whole source anew in every epoch and tells the item of any position directly. So a run goes on
exactly where it stopped by one integer, the examples seen, and neither the batch size nor the
number of processes is part of the order.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.data.sources import BadItem, Item, Source
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from grain import DatasetIterator

# This many unreadable items in a row are taken for a disaster, not for bad luck.
MAX_BAD_IN_A_ROW = 1000

logger = logging.getLogger(__name__)


def item_order(source: Source, seed: int) -> Callable[[int], int]:
    """The function from a position in the run, 0 <= p, to the index of an item.

    Each epoch of a finite source visits every item once, in another order. An endless source is
    walked from the start.

    Raises:
      UserError: the source has no items, or the seed is negative.
    """
    import grain

    if not len(source):
        raise UserError("the data source has no items")
    if seed < 0:
        raise UserError(f"seed is {seed}; it must not be negative")
    if source.endless:
        return lambda position: position
    shuffled = grain.MapDataset.range(len(source)).seed(seed % 2**32).shuffle().repeat(None)
    return lambda position: int(shuffled[position])


def batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    start_index: int = 0,
    rows: Sequence[int] | None = None,
    num_threads: int = 2,
    num_workers: int = 0,
    flip: bool = False,
    crop_size: int = 0,
    crop_multiple: int = 1,
) -> DatasetIterator[dict[str, Any]]:
    """The endless batches of one process, read ahead in threads or in worker processes.

    Args:
      source: gives square pictures of side `image_size`.
      batch_size: of the global batch.
      image_size: side of the pictures.
      seed: of the order, the flips and the crops.
      start_index: examples seen so far by the run (all processes): the position of the first.
      rows: which b rows of the global batch to read, see `BatchRows.local`; None: all of them.
      num_threads: reading threads, of each worker where there are some; 0 reads when asked.
      num_workers: processes that read whole batches; 0 reads in this one. They do not change what
        is read. The main module must be importable (`if __name__ == "__main__"`).
      flip: mirror each picture with probability 1/2.
      crop_size: cut a random square of this side from each picture; 0 takes it whole.
      crop_multiple: the corner of a crop is at multiples of this.

    Returns:
      An endless iterator (`close()` ends its threads and workers) over dicts of `image`
      `[b, S, S, 3]` uint8 (S is crop_size or image_size), `captions` (list of b strings) and
      `bad` (`[b]` bool: rows that had to be replaced, because an item could not be read, by the
      next item in the source that can).

    Raises:
      UserError: sizes do not fit, a negative seed or position, an empty source, or
        nothing but unreadable items.
    """
    import grain

    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    if start_index < 0:
        raise UserError(f"start_index is {start_index}; it must not be negative")
    if not 0 <= crop_size <= image_size or (image_size - crop_size) % crop_multiple:
        raise UserError(
            f"crop size {crop_size} does not fit pictures of {image_size}; use one up to that, "
            f"in steps of {crop_multiple}"
        )
    rows = range(batch_size) if rows is None else rows
    stream_of_rows = _Rows(
        source=_Reader(source),
        order=item_order(source, seed),
        seed=seed,
        flip=flip,
        crop_size=crop_size,
        crop_multiple=crop_multiple,
        position=_positions(batch_size, start_index, rows),
    )
    side = crop_size or image_size
    # Four batches ahead: enough for an uneven reader, little memory for large pictures.
    ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)
    if num_threads < 1:
        ahead = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    local = _Batches(stream_of_rows, len(rows), (side, side, 3))
    stream = grain.MapDataset.source(local).to_iter_dataset(ahead)
    if num_workers:
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_ignore_signals
        )
    return iter(stream)


def _ignore_signals(worker: int, count: int) -> None:
    """What asks a run to stop often reaches workers too; the main process ends them at its end."""
    del worker, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def spread_items(source: Source, number: int) -> list[Item]:
    """Items evenly spread over the source (the first of an endless one), as training reads them.

    Fewer where it has fewer.
    """
    reader = _Reader(source)
    number = min(number, len(source))
    stride = 1 if source.endless else len(source) // number
    return [reader.read(position * stride)[0] for position in range(number)]


def _positions(batch_size: int, start: int, rows: Sequence[int]) -> Callable[[int], int]:
    """From the number of a row of this process to its position in the run."""
    rows = [int(row) for row in rows]

    def position(number: int) -> int:
        step, within = divmod(number, len(rows))
        return start + step * batch_size + rows[within]

    return position


class _Reader:
    """Reads items of a source; in place of one that cannot be read, the next that can."""

    def __init__(self, source: Source):
        self._source = source
        self._bad: set[int] = set()

    def read(self, index: int) -> tuple[Item, bool]:
        """The item, and whether it stands in for another."""
        length = len(self._source)
        reason: BadItem | None = None
        for offset in range(min(length, MAX_BAD_IN_A_ROW)):
            candidate = (index + offset) % length
            if candidate in self._bad:
                continue
            try:
                return self._source.item(candidate), offset > 0
            except BadItem as error:
                reason = error
                self._bad.add(candidate)
                logger.warning("skipped, and replaced by the next: %s", error)
        raise UserError(
            f"{min(length, MAX_BAD_IN_A_ROW)} pictures in a row cannot be read"
            f" ({reason or 'all were tried before'}); check the data"
        )


class _Rows:
    """The rows of this process, one after the other, as Grain reads them."""

    def __init__(
        self,
        *,
        source: _Reader,
        order: Callable[[int], int],
        seed: int,
        flip: bool,
        crop_size: int,
        crop_multiple: int,
        position: Callable[[int], int],
    ):
        self._reader = source
        self._order = order
        self._seed = seed
        self._flip = flip
        self._crop_size = crop_size
        self._crop_multiple = crop_multiple
        self._position = position

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[np.ndarray, str, bool]:
        position = self._position(row)
        item, was_bad = self._reader.read(self._order(position))
        image = item.image
        if self._flip or self._crop_size:
            # Text seeds are hashed, so that neighbouring positions have nothing in common.
            draw = random.Random(f"augment/{self._seed}/{position}").random
            if self._flip and draw() < 0.5:
                image = image[:, ::-1]
            if self._crop_size:
                places = (image.shape[0] - self._crop_size) // self._crop_multiple + 1
                top, left = (int(draw() * places) * self._crop_multiple for _ in range(2))
                image = image[top : top + self._crop_size, left : left + self._crop_size]
        return image, item.caption, was_bad


class _Batches:
    """The batches of this process, each read by one thread."""

    def __init__(self, rows: _Rows, size: int, shape: tuple[int, int, int]):
        self._rows = rows
        self._size = size
        self._shape = shape

    def __len__(self) -> int:
        return sys.maxsize // self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.empty((self._size, *self._shape), np.uint8)
        captions, bad = [], np.empty(self._size, bool)
        for i in range(self._size):
            image[i], caption, bad[i] = self._rows[index * self._size + i]
            captions.append(caption)
        return {"image": image, "captions": captions, "bad": bad}
