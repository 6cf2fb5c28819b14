"""Writes any source into a record store; the work of the command `prepare_data`."""

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
from imagen_jax.data.builtin.icons.records import IconRecords
from imagen_jax.data.formats.array_record import (
    CONTENT,
    HELD_OUT,
    OWN_SPLIT,
    PROVENANCE,
    encode_record,
)
from imagen_jax.data.images import decode_image
from imagen_jax.data.open import check_settings_are_read, load_records, load_source
from imagen_jax.data.records import ItemFilter, Record, Records
from imagen_jax.data.source import BadItem, FilteredItem, Source
from imagen_jax.errors import UserError
from imagen_jax.stores.manifest import Manifest
from imagen_jax.stores.writer import Read, StorePlan, write_shards

# Records that each thread reads ahead and holds in memory.
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
    """Writes the encoded pictures of a source with their captions into a store.

    Every picture is decoded once, so that the store has no bad pictures. Pictures that are bad, or
    that the filters of the config leave out, are counted in the notes of the manifest. The store
    has the split and the provenance of the source, if it has them (see `Records`). Held-out records
    come last: if `max_items` leaves none of them, nothing is held out.

    Args:
      config: of the data.
      directory: of the store.
      image_size: size that `min_side` refers to; for sources that draw, the side of the pictures.
      max_items: writes only the first items of the source (0: all); needed for endless sources.
      shard_size: items a shard.
      num_threads: threads that read and check.
      process_index, process_count: see `write_shards`.
      progress: see `write_shards`.

    Returns:
      The manifest, or None while other processes have shards to make.

    Raises:
      UserError: the source does not exist or is a mix; the directory holds another store; the
        source is endless and `max_items` is 0; too many items are bad; the disk is full.
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
    """All pictures of a source: as they are stored, or as PNG files if the source draws them.

    Raises:
      UserError: the source does not exist or is a mix.
    """
    if config.source == "mix":
        raise UserError("a mix cannot be converted; prepare each of its parts and mix the stores")
    if config.source == "icons":
        return IconRecords(config.path, None, image_size)
    if config.source in DRAWN_SOURCES:
        return _DrawnRecords(load_source(config, "train", image_size))
    check_settings_are_read(config)
    return load_records(config, None)


def plan_store(
    config: DataConfig,
    records: Records,
    directory: str,
    image_size: int,
    max_items: int,
    shard_size: int,
) -> StorePlan:
    """The plan of the store that `prepare` writes; see there for the arguments and errors."""
    if isinstance(records, _DrawnRecords) and records.endless and not max_items:
        raise UserError(f"source {config.source!r} is endless; limit the items (--max_items=...)")
    length = min(len(records), max_items) if max_items else len(records)
    return StorePlan(directory, length, shard_size, _meta(config, records, image_size))


def reader(config: DataConfig, records: Records, image_size: int, num_threads: int) -> Read:
    """The function that reads the records of a shard; see `prepare` for arguments and errors."""
    item_filter = ItemFilter.from_config(config, has_score=bool(config.score_field))
    first_held_out = len(records) - (getattr(records, "num_held_out", None) or 0)

    def read(start: int, stop: int, notes: collections.Counter[str]) -> Iterator[bytes]:
        with ThreadPoolExecutor(num_threads) as pool:
            results = _in_order(
                pool,
                lambda i: _convert(records, i, item_filter, image_size),
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
                f"of the items {start:,} to {stop:,}, a greater share than "
                f"data.max_bad_share={config.max_bad_share} is bad:\n{kinds}\nRepair the data or "
                "increase the allowed share; finished shards are kept"
            )

    return read


def _meta(config: DataConfig, records: Records, image_size: int) -> dict[str, Any]:
    """Settings that all runs for one store must share; not the path, since a set may be moved."""
    filters = ("min_side", "max_aspect", "min_caption_length", "max_caption_length", "min_score")
    fields = ("source", "split", "image_field", "caption_fields", "score_field")
    values = {name: getattr(config, name) for name in (*fields, *filters)}
    values["caption_fields"] = list(config.caption_fields)
    if config.captions != "text":
        values["captions"] = config.captions
        values["label_field"] = config.label_field
        values["label_names"] = list(config.label_names)
    if config.min_side or config.source in DRAWN_SOURCES:
        values["image_size"] = image_size
    if getattr(records, "num_held_out", None) is not None:
        values[OWN_SPLIT] = True
    if provenance := getattr(records, "provenance", None):
        values[PROVENANCE] = provenance
    return {"content": CONTENT, **values}


def _convert(
    records: Records, index: int, item_filter: ItemFilter, image_size: int
) -> bytes | BadItem:
    try:
        record = records.record(index)
        captions = item_filter.select_captions(record)
        item_filter.check_score(record)
        # Decoding to a single pixel is the fastest check that the whole file can be read.
        decode_image(
            record.image,
            1,
            lambda *size: item_filter.check_size(*size, (image_size, image_size)),
            item_filter.max_pixels,
        )
        return encode_record(Record(record.key, record.image, captions, record.score))
    except BadItem as error:
        return error


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], Any], items: range, num_threads: int
) -> Iterator[Any]:
    """Like `pool.map`, but at most `_AHEAD` items a thread ahead of the caller."""
    pending: collections.deque[Any] = collections.deque()
    rest = iter(items)
    for item in islice(rest, _AHEAD * num_threads):
        pending.append(pool.submit(function, item))
    while pending:
        result = pending.popleft().result()
        for item in islice(rest, 1):
            pending.append(pool.submit(function, item))
        yield result


class _DrawnRecords:
    """Pictures that a source draws, as PNG files: the part of `Records` that is needed here."""

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
        return Record(str(index), stream.getvalue(), item.captions)
