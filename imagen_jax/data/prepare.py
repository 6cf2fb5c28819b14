"""Any source as a record store: what `prepare_data` does."""

from __future__ import annotations

import collections
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.config.data import DRAWN_SOURCES
from imagen_jax.data.formats.array_record import (
    CONTENT,
    HELD_OUT,
    OWN_SPLIT,
    PROVENANCE,
    encode_record,
)
from imagen_jax.data.records import Record, Records, Wanted, load_records
from imagen_jax.data.source import BadItem, FilteredItem, Source, load_source
from imagen_jax.errors import UserError
from imagen_jax.stores.manifest import Manifest
from imagen_jax.stores.writer import Read, StorePlan, write_shards

# Read, checked and held in memory at a time by each thread.
_AHEAD = 4


def prepare(
    config: DataConfig,
    directory: str,
    *,
    image_size: int = 64,
    max_items: int = 0,
    shard_size: int = 10_000,
    num_threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest | None:
    """Writes the pictures of a source, as they are stored, with their captions into a store.

    Every picture is decoded once, so that none in the store is bad; those that are bad, or that
    the filters of the config leave out, are counted in the manifest's notes. The store has the
    split and the provenance of the source, if that has them (see `Records`); with `max_items` too
    few for the held-out records, which are the last, nothing is held out.

    Args:
      config: of the data.
      directory: of the store.
      image_size: what `min_side` refers to; for sources that draw, the side of the pictures.
      max_items: the first so many only (0: all); needed for endless sources.
      shard_size: items a shard.
      num_threads: threads that read and check.
      process_index, process_count: see `write_shards`.
      progress: see `write_shards`.

    Returns:
      The manifest, or None while other processes have shards to make.

    Raises:
      UserError: the source is not there; the directory holds another store; a mix; an endless
        source without `max_items`; too many items are bad; a full disk.
    """
    records = open_records(config, image_size)
    plan = plan_store(config, records, directory, image_size, max_items, shard_size)
    return write_shards(
        plan,
        reader(config, records, image_size, num_threads),
        process_index=process_index,
        process_count=process_count,
        progress=progress,
    )


def open_records(config: DataConfig, image_size: int) -> Records:
    """All pictures of a source, as they are stored or, of a source that draws, as PNG files.

    Raises:
      UserError: the source is not there; a mix.
    """
    if config.source == "mix":
        raise UserError("a mix is not converted: prepare its parts one by one, and mix the stores")
    if config.source == "icons":
        from imagen_jax.data.builtin.icons.records import IconRecords

        return IconRecords(config.path, None, image_size)
    if config.source in DRAWN_SOURCES:
        return _DrawnRecords(load_source(config, "train", image_size))
    return load_records(config, None)


def plan_store(
    config: DataConfig,
    records: Records,
    directory: str,
    image_size: int,
    max_items: int,
    shard_size: int,
) -> StorePlan:
    """The store that `prepare` makes of the records; see there for the arguments and errors."""
    if isinstance(records, _DrawnRecords) and records.endless and not max_items:
        raise UserError(f"source {config.source!r} has no end; say how many (--max_items=...)")
    length = min(len(records), max_items) if max_items else len(records)
    return StorePlan(directory, length, shard_size, _meta(config, records, image_size))


def reader(config: DataConfig, records: Records, image_size: int, num_threads: int) -> Read:
    """What gives the records of a shard; see `prepare` for the arguments and errors."""
    wanted = Wanted.of(config, has_score=bool(config.score_field))
    first_held_out = len(records) - (getattr(records, "num_held_out", None) or 0)

    def read(start: int, stop: int, notes: collections.Counter[str]) -> Iterator[bytes]:
        with ThreadPoolExecutor(num_threads) as pool:
            results = _in_order(
                pool,
                lambda i: _convert(records, i, wanted, image_size),
                range(start, stop),
                num_threads,
            )
            for index, result in enumerate(results, start):
                if isinstance(result, BadItem):
                    group = "filtered" if isinstance(result, FilteredItem) else "bad"
                    notes[f"{group}: {result.kind}"] += 1
                    continue
                if index >= first_held_out:
                    notes[HELD_OUT] += 1
                yield result
        bad = sum(number for note, number in notes.items() if note.startswith("bad: "))
        if bad > config.max_bad_share * max(stop - start, 100):
            kinds = "\n".join(
                f"  {number:,} {note}" for note, number in notes.most_common() if note != HELD_OUT
            )
            raise UserError(
                f"of the items {start:,} to {stop:,}, more than "
                f"data.max_bad_share={config.max_bad_share} are bad:\n{kinds}\nMend the data, or "
                "allow a greater share; shards made so far are kept"
            )

    return read


def _meta(config: DataConfig, records: Records, image_size: int) -> dict[str, Any]:
    """What another run must agree on. The path is not part of it: a set may be moved."""
    filters = ("min_side", "max_aspect", "min_caption_length", "max_caption_length", "min_score")
    fields = ("source", "split", "image_field", "caption_fields", "score_field")
    values = {name: getattr(config, name) for name in (*fields, *filters)}
    values["caption_fields"] = list(config.caption_fields)
    if config.min_side or config.source in DRAWN_SOURCES:
        values["image_size"] = image_size
    if getattr(records, "num_held_out", None) is not None:
        values[OWN_SPLIT] = True
    if provenance := getattr(records, "provenance", None):
        values[PROVENANCE] = provenance
    return {"content": CONTENT, **values}


def _convert(records: Records, index: int, wanted: Wanted, image_size: int) -> bytes | BadItem:
    from imagen_jax.data.images import decode_image

    try:
        record = records.record(index)
        captions = wanted.captions(record)
        wanted.check_score(record)
        # The smallest size is the fastest check that the whole file can be read.
        decode_image(
            record.image, 1, lambda *size: wanted.check_size(*size, (image_size, image_size))
        )
        return encode_record(Record(record.key, record.image, captions, record.score))
    except BadItem as error:
        return error


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], Any], items: range, num_threads: int
) -> Iterator[Any]:
    """As `pool.map`, but never far ahead of the reader."""
    waiting: collections.deque[Any] = collections.deque()
    rest = iter(items)
    for item in islice(rest, _AHEAD * num_threads):
        waiting.append(pool.submit(function, item))
    while waiting:
        result = waiting.popleft().result()
        for item in islice(rest, 1):
            waiting.append(pool.submit(function, item))
        yield result


class _DrawnRecords:
    """Pictures that a source draws, as PNG files."""

    def __init__(self, source: Source):
        self._source = source
        self.endless = source.endless
        self.skipped: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self._source)

    def record(self, index: int) -> Record:
        from PIL import Image

        item = self._source.item(index)
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(item.image)).save(stream, "PNG")
        return Record(str(index), stream.getvalue(), (item.caption, *item.other_captions))
