"""Pictures in the ArrayRecord stores that prepare_data writes."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.files import record_stamps
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem, printable
from imagen_jax.errors import UserError
from imagen_jax.stores.store import MissingShardError, RecordError, RecordStore

# Entry `content` in the manifest of a store of pictures.
CONTENT = "pictures"
# In the metadata of a store: its records come from a set with a split of its own.
OWN_SPLIT = "own_split"
PROVENANCE = "provenance"
# A shard's note: how many of its records, the last ones, are held out.
HELD_OUT = "held out"


class PreparedRecords:
    """The records of a store of pictures.

    Args:
      config: `path` is the directory of the store.

    Attributes:
      folder, num_held_out, provenance: see `Records`.
      skipped: always empty, since unreadable pictures were left out when the store was made.

    Raises:
      UserError: there is no complete store, or it does not hold pictures.
    """

    def __init__(self, config: SourceConfig):
        if not config.path:
            raise UserError("config.data.path is empty; set it to the store that prepare_data made")
        self.folder = Path(os.path.expanduser(config.path))
        self._store = RecordStore(self.folder)
        manifest = self._store.manifest
        content = manifest.meta.get("content")
        if content != CONTENT:
            raise UserError(
                f"config.data.path={config.path} is a store of {content!r}, not of pictures"
            )
        own_split = manifest.meta.get(OWN_SPLIT, False)
        self.num_held_out = manifest.notes.get(HELD_OUT, 0) if own_split else None
        self.provenance = manifest.meta.get(PROVENANCE, {})
        self._without_captions = config.captions == "none"
        self.skipped: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self._store)

    def parts(self) -> Iterator[tuple[str, int]]:
        return ((shard.sha256, shard.count) for shard in self._store.manifest.shards)

    def stamps(self) -> np.ndarray:
        return record_stamps((shard.sha256, shard.count) for shard in self._store.manifest.shards)

    def head(self, index: int, size: int) -> bytes:
        return self.record(index).image

    def record(self, index: int) -> Record:
        try:
            record = decode_record(self._store.read(index))
            if self._without_captions:
                return dataclasses.replace(record, captions=("",))
            return record
        except RecordError as error:
            is_missing = isinstance(error, MissingShardError)
            kind = "shard is gone" if is_missing else "damaged shard"
            raise BadItem(str(error), kind) from error


def encode_record(record: Record) -> bytes:
    """A record as MessagePack; equal records give equal bytes."""
    values = {
        "key": printable(record.key),
        "image": record.image,
        "captions": list(record.captions),
    }
    if record.score is not None:
        values["score"] = record.score
    return msgpack.packb(values)


def decode_record(data: bytes) -> Record:
    """The inverse of `encode_record`. Raises BadItem if the bytes are not a record."""
    try:
        values = msgpack.unpackb(data)
        return Record(
            key=values["key"],
            image=values["image"],
            captions=tuple(values["captions"]),
            score=values.get("score"),
        )
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise BadItem(f"not a record of a picture ({error})", "damaged record") from error
