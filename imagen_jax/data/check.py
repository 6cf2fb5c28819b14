"""Looks at a set of pictures as a stage would see it, before anything is trained."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from imagen_jax.data.images import decode_image
from imagen_jax.data.records import DecodedRecords
from imagen_jax.data.source import BadItem, FilteredItem, Item, Source

# Of each kind of fault, so many items are named.
NAMED = 5


@dataclasses.dataclass
class Findings:
    """What was found.

    Attributes:
      total: items of the source.
      looked_at: how many of them were read, evenly spread.
      skipped: what was left out when the files were looked through (reason: number).
      bad, filtered: items that cannot be read or are not wanted, by kind.
      named: some of the bad ones, by kind.
      widths, heights: of the stored pictures, where they are stored.
      caption_lengths: characters, of every caption.
      captions_per_item: how many there are.
      duplicates: pictures whose decoded pixels were seen before, and the largest such group.
      repeated_captions: captions seen before.
      samples: some items, evenly spread.
      cpu_seconds: spent by this process to read the good items.
    """

    total: int
    looked_at: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    filtered: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    named: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    widths: list[int] = dataclasses.field(default_factory=list)
    heights: list[int] = dataclasses.field(default_factory=list)
    caption_lengths: list[int] = dataclasses.field(default_factory=list)
    captions_per_item: collections.Counter[int] = dataclasses.field(
        default_factory=collections.Counter
    )
    duplicates: int = 0
    largest_group: int = 1
    repeated_captions: int = 0
    samples: list[Item] = dataclasses.field(default_factory=list)
    cpu_seconds: float = 0.0

    @property
    def good(self) -> int:
        return self.looked_at - self.bad.total() - self.filtered.total()

    @property
    def per_core(self) -> float:
        """Pictures that a core reads, decodes and resizes in a second."""
        return self.good / max(self.cpu_seconds, 1e-9)


@dataclasses.dataclass(frozen=True)
class _Seen:
    item: Item | None
    size: tuple[int, int] | None
    fault: BadItem | None


def examine(
    source: Source,
    *,
    most: int = 10_000,
    num_samples: int = 32,
    num_threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Reads up to `most` items, evenly spread (the first of an endless source).

    Args:
      source: as a stage reads it.
      most: items.
      num_samples: items kept to be shown.
      num_threads: that read.
      progress: called with the items done and their number.
    """
    total = len(source)
    number = min(most, total)
    stride = 1 if source.endless else total // max(number, 1)
    indices = range(0, number * stride, max(stride, 1))
    found = Findings(total=total, skipped=dict(_skipped(source)))
    pixels: collections.Counter[bytes] = collections.Counter()
    captions: collections.Counter[bytes] = collections.Counter()
    every = max(1, number // max(num_samples, 1))
    start = time.process_time()
    if progress:
        progress(0, number)
    for done, seen in enumerate(_read_all(source, indices, num_threads), 1):
        _count(found, seen, pixels, captions)
        if seen.item is not None and len(found.samples) < min(num_samples, 1 + done // every):
            found.samples.append(seen.item)
        if progress:
            progress(done, number)
    found.cpu_seconds = time.process_time() - start
    found.duplicates = pixels.total() - len(pixels)
    found.largest_group = max(pixels.values(), default=1)
    found.repeated_captions = captions.total() - len(captions)
    return found


def loader_rate(stream: Iterator[dict[str, Any]], seconds: float) -> float:
    """Pictures a second that a stream of batches gives, after its first batch."""
    next(stream)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(stream)["captions"])
    return count / (time.perf_counter() - start)


def _read_all(source: Source, indices: range, num_threads: int) -> Iterator[_Seen]:
    """In order, a little ahead."""
    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        step = 16 * max(num_threads, 1)
        for begin in range(0, len(indices), step):
            yield from pool.map(lambda i: _read(source, i), indices[begin : begin + step])


def _read(source: Source, index: int) -> _Seen:
    size: list[tuple[int, int]] = []
    try:
        if not isinstance(source, DecodedRecords):
            return _Seen(source.item(index), None, None)

        def check_size(width: int, height: int) -> None:
            size.append((width, height))
            source.item_filter.check_size(width, height, (source.image_size, source.image_size))

        record = source.records.record(index)
        captions = source.item_filter.select_captions(record)
        source.item_filter.check_score(record)
        try:
            image = decode_image(record.image, source.image_size, check_size)
        except BadItem as error:
            error.args = (f"{record.key}: {error}",)
            raise
        return _Seen(Item(image, captions[0], captions[1:]), size[0], None)
    except BadItem as error:
        return _Seen(None, size[0] if size else None, error)


def _count(
    found: Findings,
    seen: _Seen,
    pixels: collections.Counter[bytes],
    captions: collections.Counter[bytes],
) -> None:
    found.looked_at += 1
    if seen.size is not None:
        found.widths.append(seen.size[0])
        found.heights.append(seen.size[1])
    if seen.item is None:
        kind = seen.fault.kind
        if isinstance(seen.fault, FilteredItem):
            found.filtered[kind] += 1
            return
        found.bad[kind] += 1
        named = found.named.setdefault(kind, [])
        if len(named) < NAMED:
            named.append(str(seen.fault))
        return
    texts = (seen.item.caption, *seen.item.other_captions)
    found.captions_per_item[len(texts)] += 1
    found.caption_lengths += map(len, texts)
    captions.update(_digest(text.encode()) for text in texts)
    pixels[_digest(np.ascontiguousarray(seen.item.image).tobytes())] += 1


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=12).digest()


def _skipped(source: Source) -> collections.Counter[str]:
    if isinstance(source, DecodedRecords):
        return source.records.skipped
    total: collections.Counter[str] = collections.Counter()
    for part in getattr(source, "parts", ()):
        total += _skipped(part)
    return total
