"""The records of a store, read at random; `store_writer` makes one."""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from typing import Any

from etils import epath

from imagen_jax.stores.manifest import Shard, read_manifest, sha256

# Single records, or ranges of a few, are read: nothing ahead.
_READER = "readahead_buffer_size:0,max_parallelism:0"
# Each open shard holds a file; a process may often have 1,024, and large stores have more shards.
_MOST_OPEN = 256


class RecordError(Exception):
    """A record cannot be read: its shard is gone or damaged."""


class RecordStore:
    """The records of a complete store, at random; may be used from several threads and pickled.

    Args:
      directory: of the store.

    Attributes:
      manifest: what it holds.

    Raises:
      UserError: there is no complete store.
    """

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)
        self.manifest = read_manifest(directory)
        self._ends = list(itertools.accumulate(shard.count for shard in self.manifest.shards))
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}

    def read(self, index: int) -> bytes:
        """The record at `index` in [0, len). Raises RecordError if it cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        shard = self.manifest.shards[number]
        within = index - (self._ends[number] - shard.count)
        reader = self._readers.get(number)
        # Two threads may open one shard at the same time; one of the readers is dropped.
        if reader is None:
            reader = self._open(shard)
            if len(self._readers) >= _MOST_OPEN:
                self._readers = {}
            self._readers[number] = reader
        try:
            (record,) = reader.read([within])
        except Exception as error:
            raise RecordError(f"{shard.file}: record {within} cannot be read ({error})") from error
        return record

    def _open(self, shard: Shard) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        path = Path(self.directory / shard.file)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise RecordError(f"{path} is not there ({error.strerror})") from error
        if size != shard.size:
            raise RecordError(f"{path} has {size:,} bytes of {shard.size:,}")
        reader = ArrayRecordReader(str(path), _READER)
        if not reader.ok() or reader.num_records() != shard.count:
            raise RecordError(f"{path} is damaged")
        return reader


def verify(directory: epath.PathLike) -> list[str]:
    """Compares every shard with its checksum; a line for each that is gone or differs."""
    problems = []
    for shard in read_manifest(directory).shards:
        path = Path(epath.Path(directory) / shard.file)
        try:
            digest = sha256(path)
        except OSError as error:
            problems.append(f"{shard.file}: {error.strerror}")
            continue
        if digest != shard.sha256:
            problems.append(f"{shard.file}: not what was written")
    return problems
