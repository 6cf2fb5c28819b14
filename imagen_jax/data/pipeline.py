"""From a source to batches: order, reading ahead, replacement of items that are left out.

The item at position p of a run is a pure function of (seed, p): Grain shuffles the whole source
anew in every epoch and computes the item at any position directly. One integer, the number of
examples seen, is therefore enough to continue a run exactly, and the order does not depend on the
batch size or the number of processes. An item that cannot be read or is filtered out is replaced by
another one, which depends on the position alone and is drawn from the whole source, so that the
remaining items are still drawn evenly.

With buckets of several shapes (`BucketedSource`), all items of a batch come from one bucket, so the
order depends on the batch size. The bucket of batch k follows from k and the shares of the buckets;
the batch takes the next items of that bucket. A batch may start in one epoch of its bucket and end
in the next.
"""

from __future__ import annotations

import collections
import itertools
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.data.buckets import BucketedSource
from imagen_jax.data.mixing import MixedSource
from imagen_jax.data.source import BadItem, FilteredItem, Item, Source
from imagen_jax.data.warn_once import MAX_LOGGED, warn_once
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from grain import DatasetIterator

# Maximum attempts to find an item for one position.
MAX_TRIES = 1000

# For "bad" and for "filtered" items: the number of each kind.
LeftOut = dict[str, dict[str, int]]
# Kind and message of bad items.
Messages = list[tuple[str, str]]


def item_order(source: Source, seed: int) -> Callable[[int], int]:
    """The function from a position in the run, at least 0, to the index of an item.

    Each epoch of a finite source visits every item once, in an order of its own. An endless source
    is read in order from its start. The parts of a mix are interleaved by their weights, and each
    part has its own epochs.

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
      source: of square pictures with side `image_size`, or of several buckets.
      batch_size: of the global batch.
      image_size: side of the pictures; with buckets, side of the square pictures.
      seed: of the order, the flips and the crops.
      start_index: examples that all processes of the run have seen so far, which is the position
        of the first example. With buckets, the first batch is the one that contains it.
      rows: the b rows of the global batch to read, see `BatchRows.local`; None: all of them.
      counted: `[b]` bool, the rows whose left-out items are counted; None: all of them. (If two
        processes read the same row, only one counts.)
      num_threads: reading threads, of each worker if there are workers; 0: no reading ahead.
      num_workers: processes that read whole batches; 0: this process reads. The batches are the
        same. With workers, the main module must be importable (`if __name__ == "__main__"`).
      flip: mirror each picture with probability 1/2.
      crop_size: crop a random square of this side from each picture; 0: no crop.
      crop_multiple: the corners of crops are at multiples of this.

    Returns:
      An endless iterator (`close()` ends its threads and workers) over dicts with the entries
        `image`: `[b, S, S, 3]` uint8, where S is crop_size or image_size; with buckets and without
          crops `[b, H, W, 3]`, of one shape a batch;
        `captions`: a list of b strings;
        `left_out`: for `bad` items, which could not be read, and for `filtered` items, how many of
          each kind were replaced in the counted rows;
        `messages`: kind and message of some bad items, for `warn_once`.

    Raises:
      UserError: sizes do not fit, the seed or position is negative, the source is empty, or no item
        can be used.
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
    reader = _BucketReader if in_buckets else _SourceReader
    row_source = _Rows(
        reader=reader(source, seed, batch_size, start_index, rows),
        seed=seed,
        flip=flip,
        crop_size=crop_size,
        crop_multiple=crop_multiple,
    )
    # Four batches even out the reading times, and take little memory for large pictures. More are
    # read ahead only where four batches have fewer rows than there are threads.
    ahead = max(4, 1 + -(-num_threads // max(len(rows), 1))) if num_threads > 0 else 0
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    read_batches = _Batches(row_source, counted, num_threads)
    stream = grain.MapDataset.source(read_batches).to_iter_dataset(options)
    if num_workers:
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_ignore_signals
        )
    return iter(stream)


def _ignore_signals(worker: int, count: int) -> None:
    """Lets workers ignore the signals that stop a run; the main process ends its workers."""
    del worker, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def spread_items(source: Source, number: int) -> list[Item]:
    """Items evenly spread over the source, as training reads them; fewer if the source is smaller.

    Of an endless source, the first items. Of buckets, each bucket's share, one bucket after the
    other.
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
    reader = _ItemReader(source, seed=0)
    number = min(number, len(source))
    stride = 1 if source.endless else len(source) // number
    items = []
    for i in range(number):
        item, _, messages = reader.read(i * stride, f"spread/{i}")
        items.append(item)
        for kind, message in messages:
            warn_once(kind, message)
    return items


def item_captions(source: Source, index: int) -> tuple[str, ...]:
    """The captions that training may draw for an item.

    A source that knows them without decoding the picture has a method `captions(index)`.

    Raises:
      BadItem: the item has to be decoded, and cannot be.
    """
    captions = getattr(source, "captions", None)
    return captions(index) if captions else source.item(index).captions


class _SourceReader:
    """Reads the items of this process's rows from one source.

    Args:
      source, seed, batch_size, rows: see `batches`.
      start: position of the first example.
    """

    def __init__(self, source: Source, seed: int, batch_size: int, start: int, rows: Sequence[int]):
        self._reader = _ItemReader(source, seed)
        self._order = item_order(source, seed)
        self._batch_size = batch_size
        self._start = start
        self._rows = [int(row) for row in rows]

    def read(self, number: int) -> tuple[int, Item, LeftOut, Messages]:
        """Position in the run, item, left-out items of a row and their messages.

        Args:
          number: of the row among the rows of this process in all batches.
        """
        step, within = divmod(number, len(self._rows))
        position = self._start + step * self._batch_size + self._rows[within]
        return position, *self._reader.read(self._order(position), position)


class _BucketReader:
    """The same as `_SourceReader` for a source in buckets."""

    def __init__(
        self, source: BucketedSource, seed: int, batch_size: int, start: int, rows: Sequence[int]
    ):
        self._source = source
        self._readers = [_ItemReader(bucket, seed) for bucket in source.buckets]
        self._orders = [item_order(bucket, seed) for bucket in source.buckets]
        self._batch_size = batch_size
        self._first_batch = start // batch_size
        self._rows = [int(row) for row in rows]
        # A rare bucket is first read late in a run. Reading an item of each now finds those in
        # which no item can be used.
        for bucket in range(len(source.buckets)):
            self._read(bucket, 0, "start")

    def read(self, number: int) -> tuple[int, Item, LeftOut, Messages]:
        step, within = divmod(number, len(self._rows))
        batch, row = self._first_batch + step, self._rows[within]
        bucket, before = self._source.nth_batch(batch)
        index = self._orders[bucket](before * self._batch_size + row)
        position = batch * self._batch_size + row
        return position, *self._read(bucket, index, position)

    def _read(self, bucket: int, index: int, position: object) -> tuple[Item, LeftOut, Messages]:
        try:
            return self._readers[bucket].read(index, position)
        except UserError as error:
            raise UserError(
                f"bucket {self._source.aspects[bucket]} of config.data.aspect_buckets: {error}, or "
                "remove the bucket"
            ) from error


class _ItemReader:
    """Reads items of a source, and replaces those that are left out."""

    def __init__(self, source: Source, seed: int):
        self._source = source
        self._seed = seed

    def read(self, index: int, position: object) -> tuple[Item, LeftOut, Messages]:
        """The item at `index` or a replacement, and what was left out until it was found.

        Args:
          index: of the item.
          position: together with the seed, determines the replacements.

        Raises:
          UserError: no item was found in `MAX_TRIES` attempts.
        """
        length = len(self._source)
        bad: collections.Counter[str] = collections.Counter()
        filtered: collections.Counter[str] = collections.Counter()
        messages: Messages = []
        candidates = self._candidates(index, position)
        for candidate in itertools.islice(candidates, MAX_TRIES):
            try:
                item = self._source.item(candidate)
                return item, {"bad": dict(bad), "filtered": dict(filtered)}, messages
            except FilteredItem as error:
                filtered[error.kind] += 1
            except BadItem as error:
                bad[error.kind] += 1
                if bad[error.kind] <= MAX_LOGGED:
                    messages.append((error.kind, str(error)))
        reasons = ", ".join(f"{n} {kind}" for kind, n in (bad + filtered).most_common())
        raise UserError(
            f"no usable picture in {min(length, MAX_TRIES)} attempts ({reasons}); check the data "
            "and its filters (python -m imagen_jax.cli.check_data). If the filters leave few "
            "pictures, apply them once (python -m imagen_jax.cli.prepare_data)"
        )

    def _candidates(self, index: int, position: object) -> Iterator[int]:
        """`index`, then random indices: each one once for a small source, else endlessly."""
        length = len(self._source)
        yield index
        # A seed of text is hashed, so that adjacent positions have independent draws.
        draw = random.Random(f"instead/{self._seed}/{position}")
        if length > MAX_TRIES:
            while True:
                yield draw.randrange(length)
        others = [other for other in range(length) if other != index]
        draw.shuffle(others)
        yield from others


class _Rows:
    """The rows of this process over all batches: picture, caption and what was left out."""

    def __init__(
        self,
        *,
        reader: _SourceReader | _BucketReader,
        seed: int,
        flip: bool,
        crop_size: int,
        crop_multiple: int,
    ):
        self._reader = reader
        self._seed = seed
        self._flip = flip
        self._crop_size = crop_size
        self._crop_multiple = crop_multiple

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[np.ndarray, str, LeftOut, Messages]:
        position, item, left_out, messages = self._reader.read(row)
        image, caption = item.image, item.caption
        if item.other_captions:
            draw = random.Random(f"caption/{self._seed}/{position}")
            caption = draw.choice(item.captions)
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
        return image, caption, left_out, messages


class _Batches:
    """The batches of this process, as Grain reads them. See `batches` for the arguments.

    Grain has a thread for each batch that is read ahead. These only wait: the rows of all batches
    are read by the threads of one pool, so that `num_threads` reads are under way at any time,
    whatever the size of the batch.
    """

    def __init__(self, rows: _Rows, counted: Sequence[bool], num_threads: int):
        self._rows = rows
        self._counted = counted
        self._size = len(counted)
        self._num_threads = num_threads
        self._start_pool()

    def _start_pool(self) -> None:
        # A pool starts its threads when they are first needed, and ends them when it is deleted.
        self._pool = ThreadPoolExecutor(self._num_threads) if self._num_threads > 0 else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start_pool()

    def __len__(self) -> int:
        return sys.maxsize // self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        pictures, captions, messages = None, [], []
        total = {"bad": collections.Counter(), "filtered": collections.Counter()}
        for i, row in enumerate(self._read(index * self._size)):
            image, caption, left_out, of_row = row
            if pictures is None:
                pictures = np.empty((self._size, *image.shape), np.uint8)
            pictures[i] = image
            captions.append(caption)
            if not self._counted[i]:
                continue
            messages += of_row
            for group, kinds in left_out.items():
                total[group].update(kinds)
        left_out = {group: dict(kinds) for group, kinds in total.items()}
        return {
            "image": pictures,
            "captions": captions,
            "left_out": left_out,
            "messages": messages,
        }

    def _read(self, start: int) -> Iterator[tuple[np.ndarray, str, LeftOut, Messages]]:
        """The rows of a batch, the first of which is number `start`."""
        rows = range(start, start + self._size)
        if not self._pool:
            return map(self._rows.__getitem__, rows)
        # Handing over a row costs as much as drawing a tenth of a small picture. With large
        # batches, a few rows are handed over at once.
        length = max(1, self._size // (4 * self._num_threads))
        parts = [rows[i : i + length] for i in range(0, self._size, length)]
        read = self._pool.map(lambda part: [self._rows[row] for row in part], parts)
        return itertools.chain.from_iterable(read)
