"""Examines a set of pictures as a stage would read it, before training."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from imagen_jax.data.records import UNREADABLE, DecodedRecords
from imagen_jax.data.source import BadItem, FilteredItem, Item, Source

# Examples that are listed for each kind of fault.
MAX_EXAMPLES = 5


@dataclasses.dataclass
class Findings:
    """What `examine` found.

    Attributes:
      total: items of the source.
      num_examined: items that were read, evenly spread over the source.
      skipped: what was left out while the files were scanned (reason: number).
      bad, filtered: number of items that cannot be read, or that the filters leave out, by kind.
      examples: messages of some bad items, by kind.
      widths, heights: of the stored pictures; empty for sources that draw.
      caption_lengths: characters of each caption.
      captions_per_item: number of items by their number of captions.
      duplicates: pictures with the same decoded pixels as an earlier one.
      largest_group: size of the largest group of equal pictures.
      repeated_captions: captions equal to an earlier one.
      unreadable_captions: captions with characters that cannot be read (U+FFFD).
      samples: some items, evenly spread.
      cpu_seconds: CPU time of this process for reading the items.
    """

    total: int
    num_examined: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    filtered: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    widths: list[int] = dataclasses.field(default_factory=list)
    heights: list[int] = dataclasses.field(default_factory=list)
    caption_lengths: list[int] = dataclasses.field(default_factory=list)
    captions_per_item: collections.Counter[int] = dataclasses.field(
        default_factory=collections.Counter
    )
    duplicates: int = 0
    largest_group: int = 1
    repeated_captions: int = 0
    unreadable_captions: int = 0
    samples: list[Item] = dataclasses.field(default_factory=list)
    cpu_seconds: float = 0.0

    @property
    def good(self) -> int:
        """Items that training can use."""
        return self.num_examined - self.bad.total() - self.filtered.total()

    @property
    def per_core(self) -> float:
        """Pictures that one core reads, decodes and resizes in a second."""
        return self.good / max(self.cpu_seconds, 1e-9)


@dataclasses.dataclass(frozen=True)
class _Result:
    """One item or why there is none; the size (W, H) of the stored picture if it is known."""

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
    """Reads items that are evenly spread over the source, or the first of an endless source.

    Args:
      source: as a stage reads it.
      most: maximum number of items to read.
      num_samples: items to keep for display.
      num_threads: reading threads.
      progress: called with the number of items done and their total.
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
    for done, result in enumerate(_read_all(source, indices, num_threads), 1):
        _count(found, result, pixels, captions)
        if result.item is not None and len(found.samples) < min(num_samples, 1 + done // every):
            found.samples.append(result.item)
        if progress:
            progress(done, number)
    found.cpu_seconds = time.process_time() - start
    found.duplicates = pixels.total() - len(pixels)
    found.largest_group = max(pixels.values(), default=1)
    found.repeated_captions = captions.total() - len(captions)
    return found


def loader_rate(stream: Iterator[dict[str, Any]], seconds: float) -> float:
    """Pictures a second that a stream of batches yields, measured after its first batch."""
    next(stream)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(stream)["captions"])
    return count / (time.perf_counter() - start)


def _read_all(source: Source, indices: range, num_threads: int) -> Iterator[_Result]:
    """Reads the items in order, a few of them ahead."""
    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        step = 16 * max(num_threads, 1)
        for begin in range(0, len(indices), step):
            yield from pool.map(lambda i: _read(source, i), indices[begin : begin + step])


def _read(source: Source, index: int) -> _Result:
    sizes: list[tuple[int, int]] = []
    item = fault = None
    try:
        if isinstance(source, DecodedRecords):
            shape = (source.image_size, source.image_size)
            item = source.item_of_shape(index, shape, lambda *size: sizes.append(size))
        else:
            item = source.item(index)
    except BadItem as error:
        fault = error
    return _Result(item, sizes[0] if sizes else None, fault)


def _count(
    found: Findings,
    result: _Result,
    pixels: collections.Counter[bytes],
    captions: collections.Counter[bytes],
) -> None:
    """Adds one result to the findings; `pixels` and `captions` count the digests of all results."""
    found.num_examined += 1
    if result.size is not None:
        found.widths.append(result.size[0])
        found.heights.append(result.size[1])
    if result.item is None:
        kind = result.fault.kind
        if isinstance(result.fault, FilteredItem):
            found.filtered[kind] += 1
            return
        found.bad[kind] += 1
        examples = found.examples.setdefault(kind, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(str(result.fault))
        return
    texts = result.item.captions
    found.captions_per_item[len(texts)] += 1
    found.caption_lengths += map(len, texts)
    found.unreadable_captions += sum(UNREADABLE in text for text in texts)
    captions.update(_digest(text.encode()) for text in texts)
    pixels[_digest(np.ascontiguousarray(result.item.image).tobytes())] += 1


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=12).digest()


def _skipped(source: Source) -> collections.Counter[str]:
    if isinstance(source, DecodedRecords):
        return source.records.skipped
    total: collections.Counter[str] = collections.Counter()
    for part in getattr(source, "parts", ()):
        total += _skipped(part)
    return total
