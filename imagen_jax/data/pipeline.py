"""From a source to batches: order, reading ahead, replacement of what is left out.

Which item stands at position p of a run is a pure function of (seed, p): Grain shuffles the
whole source anew in every epoch and tells the item of any position directly. So a run goes on
exactly where it stopped by one integer, the examples seen, and neither the batch size nor the
number of processes is part of the order. Nor are items that cannot be read or are filtered out:
whatever takes the place of one depends on the position alone, and comes from all over the source,
so that what remains of it stays evenly drawn.

In buckets of several shapes (`BucketedSource`) a batch is of one bucket, so the batch size is part
of the order: batch k of a run takes the next items of the bucket that is due by its share, which
follows from k alone. What an epoch of a bucket leaves over of a batch is the first of its next.
"""

from __future__ import annotations

import collections
import itertools
import logging
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.data.buckets import BucketedSource
from imagen_jax.data.mixing import MixedSource
from imagen_jax.data.source import BadItem, FilteredItem, Item, Source
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from grain import DatasetIterator

# Of so many items drawn for one place, one is whole and wanted, unless something is wrong.
MAX_TRIES = 1000
# Faults of one kind that are told of one by one; further ones are counted.
_TOLD = 5

# "bad" and "filtered": kind to number.
LeftOut = dict[str, dict[str, int]]

logger = logging.getLogger(__name__)


def item_order(source: Source, seed: int) -> Callable[[int], int]:
    """The function from a position in the run, 0 <= p, to the index of an item.

    Each epoch of a finite source visits every item once, in another order. An endless source is
    walked from the start. The parts of a mix are interleaved by their weights, each with epochs of
    its own.

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

    def shuffled(start: int, stop: int) -> grain.MapDataset:
        return grain.MapDataset.range(start, stop).seed(seed % 2**32).shuffle().repeat(None)

    if isinstance(source, MixedSource):
        starts = [0, *source.ends]
        parts = [shuffled(*ends) for ends in itertools.pairwise(starts)]
        order = grain.MapDataset.mix(parts, source.weights)
    else:
        order = shuffled(0, len(source))
    return lambda position: int(order[position])


def batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    start_index: int = 0,
    rows: Sequence[int] | None = None,
    counted: Sequence[bool] | None = None,
    num_threads: int = 2,
    num_workers: int = 0,
    flip: bool = False,
    crop_size: int = 0,
    crop_multiple: int = 1,
) -> DatasetIterator[dict[str, Any]]:
    """The endless batches of one process, read ahead in threads or in worker processes.

    Args:
      source: gives square pictures of side `image_size`, or those of several buckets.
      batch_size: of the global batch.
      image_size: side of the pictures; in buckets, of the square ones.
      seed: of the order, the flips and the crops.
      start_index: examples seen so far by the run (all processes): the position of the first. In
        buckets the first batch is the one that this falls into.
      rows: which b rows of the global batch to read, see `BatchRows.local`; None: all of them.
      counted: `[b]` bool, the rows for which to count what is left out; None: all of them. (Where
        two processes read the same row, one counts.)
      num_threads: reading threads, of each worker where there are some; 0 reads when asked.
      num_workers: processes that read whole batches; 0 reads in this one. They do not change what
        is read. The main module must be importable (`if __name__ == "__main__"`).
      flip: mirror each picture with probability 1/2.
      crop_size: cut a random square of this side from each picture; 0 takes it whole.
      crop_multiple: the corner of a crop is at multiples of this.

    Returns:
      An endless iterator (`close()` ends its threads and workers) over dicts of `image`
      `[b, S, S, 3]` uint8 (S is crop_size or image_size; in buckets and without crops
      `[b, H, W, 3]`, one shape a batch), `captions` (list of b strings) and `left_out` (`bad` and
      `filtered`: how many items of each kind could not be read or were not wanted, and gave their
      places to others), for the rows that count.

    Raises:
      UserError: sizes do not fit, a negative seed or position, an empty source, or
        nothing but items that cannot be read or are not wanted.
    """
    import grain

    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    if start_index < 0:
        raise UserError(f"start_index is {start_index}; it must not be negative")
    in_buckets = isinstance(source, BucketedSource)
    for side in itertools.chain(*source.shapes) if in_buckets else (image_size,):
        if not 0 <= crop_size <= side or (side - crop_size) % crop_multiple:
            raise UserError(
                f"crop size {crop_size} does not fit pictures of {side}; use one up to that, "
                f"in steps of {crop_multiple}"
            )
    rows = range(batch_size) if rows is None else rows
    counted = [True] * len(rows) if counted is None else counted
    places = _BucketPlaces if in_buckets else _Places
    stream_of_rows = _Rows(
        places=places(source, seed, batch_size, start_index, rows),
        seed=seed,
        flip=flip,
        crop_size=crop_size,
        crop_multiple=crop_multiple,
    )
    # Four batches ahead: enough for an uneven reader, little memory for large pictures.
    ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)
    if num_threads < 1:
        ahead = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    local = _Batches(stream_of_rows, counted)
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

    Fewer where it has fewer. Of buckets, each gives its share, one after the other.
    """
    if isinstance(source, BucketedSource):
        numbers = collections.Counter(
            source.nth_batch(k)[0] for k in range(min(number, len(source)))
        )
        return [
            item
            for bucket, count in sorted(numbers.items())
            for item in spread_items(source.buckets[bucket], count)
        ]
    reader = _Reader(source, seed=0)
    number = min(number, len(source))
    stride = 1 if source.endless else len(source) // number
    return [reader.read(place * stride, f"spread/{place}")[0] for place in range(number)]


def item_captions(source: Source, index: int) -> tuple[str, ...]:
    """The captions that training may draw for an item.

    A source that knows them without decoding the picture has a method `captions(index)`.

    Raises:
      BadItem: it has to be decoded, and cannot be.
    """
    captions = getattr(source, "captions", None)
    if captions:
        return captions(index)
    item = source.item(index)
    return (item.caption, *item.other_captions)


class _Places:
    """Which items the rows of this process hold.

    Args:
      source, seed: see `batches`.
      batch_size: of the global batch.
      start: position of the first row of the run.
      rows: see `batches`.
    """

    def __init__(self, source: Source, seed: int, batch_size: int, start: int, rows: Sequence[int]):
        self._reader = _Reader(source, seed)
        self._order = item_order(source, seed)
        self._batch_size = batch_size
        self._start = start
        self._rows = [int(row) for row in rows]

    def read(self, number: int) -> tuple[int, Item, LeftOut]:
        """The position in the run of row `number` of this process, and its item."""
        step, within = divmod(number, len(self._rows))
        position = self._start + step * self._batch_size + self._rows[within]
        return position, *self._reader.read(self._order(position), position)


class _BucketPlaces:
    """The same for a source in buckets."""

    def __init__(
        self, source: BucketedSource, seed: int, batch_size: int, start: int, rows: Sequence[int]
    ):
        self._source = source
        self._readers = [_Reader(bucket, seed) for bucket in source.buckets]
        self._orders = [item_order(bucket, seed) for bucket in source.buckets]
        self._batch_size = batch_size
        self._first_batch = start // batch_size
        self._rows = [int(row) for row in rows]
        # A rare bucket is first met late in a run: one that has nothing to give is told of now.
        for bucket in range(len(source.buckets)):
            self._read(bucket, 0, "start")

    def read(self, number: int) -> tuple[int, Item, LeftOut]:
        step, within = divmod(number, len(self._rows))
        batch, row = self._first_batch + step, self._rows[within]
        bucket, before = self._source.nth_batch(batch)
        index = self._orders[bucket](before * self._batch_size + row)
        position = batch * self._batch_size + row
        return position, *self._read(bucket, index, position)

    def _read(self, bucket: int, index: int, place: object) -> tuple[Item, LeftOut]:
        try:
            return self._readers[bucket].read(index, place)
        except UserError as error:
            raise UserError(
                f"the bucket {self._source.aspects[bucket]} of config.data.aspect_buckets has no "
                f"picture to give: {error}. Or leave the bucket out"
            ) from error


class _Reader:
    """Reads items of a source; in place of one that is left out, another that is not."""

    def __init__(self, source: Source, seed: int):
        self._source = source
        self._seed = seed
        self._told: collections.Counter[str] = collections.Counter()

    def read(self, index: int, place: object) -> tuple[Item, LeftOut]:
        """The item for a place, and what was left out before it was found.

        Args:
          index: of the item that the place belongs to.
          place: with the seed, decides which items are tried in its stead.
        """
        length = len(self._source)
        bad: collections.Counter[str] = collections.Counter()
        filtered: collections.Counter[str] = collections.Counter()
        candidates = self._candidates(index, place)
        for candidate in itertools.islice(candidates, MAX_TRIES):
            try:
                return self._source.item(candidate), {"bad": dict(bad), "filtered": dict(filtered)}
            except FilteredItem as error:
                filtered[error.kind] += 1
            except BadItem as error:
                bad[error.kind] += 1
                self._tell(error)
        reasons = ", ".join(f"{n} {kind}" for kind, n in (bad + filtered).most_common())
        raise UserError(
            f"of {min(length, MAX_TRIES)} pictures in a row none can be used ({reasons}); check "
            "the data and its filters (python -m imagen_jax.cli.check_data). If the filters leave "
            "so few, let python -m imagen_jax.cli.prepare_data apply them once"
        )

    def _candidates(self, index: int, place: object) -> Iterator[int]:
        """Every item of a small source once; of a large one, ever others."""
        length = len(self._source)
        yield index
        # Text seeds are hashed, so that neighbouring places have nothing in common.
        draw = random.Random(f"instead/{self._seed}/{place}")
        if length > MAX_TRIES:
            while True:
                yield draw.randrange(length)
        others = [other for other in range(length) if other != index]
        draw.shuffle(others)
        yield from others

    def _tell(self, error: BadItem) -> None:
        self._told[error.kind] += 1
        if self._told[error.kind] <= _TOLD:
            rest = "; more of these are only counted" if self._told[error.kind] == _TOLD else ""
            logger.warning("left out (%s): %s%s", error.kind, error, rest)


class _Rows:
    """The rows of this process, one after the other, as Grain reads them."""

    def __init__(
        self,
        *,
        places: _Places | _BucketPlaces,
        seed: int,
        flip: bool,
        crop_size: int,
        crop_multiple: int,
    ):
        self._places = places
        self._seed = seed
        self._flip = flip
        self._crop_size = crop_size
        self._crop_multiple = crop_multiple

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[np.ndarray, str, LeftOut]:
        position, item, left_out = self._places.read(row)
        image, caption = item.image, item.caption
        if item.other_captions:
            draw = random.Random(f"caption/{self._seed}/{position}")
            caption = draw.choice((caption, *item.other_captions))
        if self._flip or self._crop_size:
            draw = random.Random(f"augment/{self._seed}/{position}").random
            if self._flip and draw() < 0.5:
                image = image[:, ::-1]
            if self._crop_size:
                top, left = (
                    int(draw() * ((side - self._crop_size) // self._crop_multiple + 1))
                    * self._crop_multiple
                    for side in image.shape[:2]
                )
                image = image[top : top + self._crop_size, left : left + self._crop_size]
        return image, caption, left_out


class _Batches:
    """The batches of this process, each read by one thread; `counted` is as in `batches`."""

    def __init__(self, rows: _Rows, counted: Sequence[bool]):
        self._rows = rows
        self._counted = counted
        self._size = len(counted)

    def __len__(self) -> int:
        return sys.maxsize // self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        pictures, captions = None, []
        total = {"bad": collections.Counter(), "filtered": collections.Counter()}
        for i in range(self._size):
            image, caption, left_out = self._rows[index * self._size + i]
            if pictures is None:
                pictures = np.empty((self._size, *image.shape), np.uint8)
            pictures[i] = image
            captions.append(caption)
            if not self._counted[i]:
                continue
            for group, kinds in left_out.items():
                total[group].update(kinds)
        left_out = {group: dict(kinds) for group, kinds in total.items()}
        return {"image": pictures, "captions": captions, "left_out": left_out}
