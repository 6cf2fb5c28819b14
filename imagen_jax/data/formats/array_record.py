"""Pictures in the ArrayRecord stores that prepare_data writes."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import msgpack
import numpy as np

from imagen_jax.data.records import Record, stamp
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError
from imagen_jax.stores.store import RecordError, RecordStore

CONTENT = "pictures"
# In the metadata of a store: its records come from a set with a split of its own.
OWN_SPLIT = "own_split"
PROVENANCE = "provenance"
# A shard's note: how many of its records, the last ones, are held out.
HELD_OUT = "held out"


class PreparedRecords:
    """The records of a store of pictures.

    Attributes:
      home, num_held_out, provenance: see `Records`.
      skipped: nothing, as what could not be read was left out when the store was made.

    Raises:
      UserError: there is no complete store, or one of something else.
    """

    def __init__(self, path: str):
        if not path:
            raise UserError("config.data.path is empty; set it to what prepare_data wrote")
        self.home = Path(os.path.expanduser(path))
        self._store = RecordStore(self.home)
        manifest = self._store.manifest
        content = manifest.meta.get("content")
        if content != CONTENT:
            raise UserError(f"config.data.path={path} is a store of {content!r}, not of pictures")
        own_split = manifest.meta.get(OWN_SPLIT, False)
        self.num_held_out = manifest.notes.get(HELD_OUT, 0) if own_split else None
        self.provenance = manifest.meta.get(PROVENANCE, {})
        self.skipped: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self._store)

    def stamps(self) -> np.ndarray:
        return stamp((shard.sha256, shard.count) for shard in self._store.manifest.shards)

    def record(self, index: int) -> Record:
        try:
            return decode_record(self._store.read(index))
        except RecordError as error:
            kind = "shard is gone" if "not there" in str(error) else "damaged shard"
            raise BadItem(str(error), kind) from error


def encode_record(record: Record) -> bytes:
    """A record as MessagePack, the same bytes for the same record."""
    values = {"key": record.key, "image": record.image, "captions": list(record.captions)}
    if record.score is not None:
        values["score"] = record.score
    return msgpack.packb(values)


def decode_record(data: bytes) -> Record:
    """The inverse. Raises BadItem if the bytes are no record."""
    try:
        values = msgpack.unpackb(data)
        return Record(
            key=values["key"],
            image=values["image"],
            captions=tuple(values["captions"]),
            score=values.get("score"),
        )
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise BadItem(f"no record of a picture ({error})", "damaged record") from error
