"""Random access to the records of a store, which `writer` makes."""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from typing import Any

from etils import epath

from imagen_jax.stores.manifest import Shard, read_manifest, sha256

# No reading ahead, since single records are read.
_READER = "readahead_buffer_size:0,max_parallelism:0"
# Open shards, each of which is an open file. The limit of a process is often 1,024 files, and large
# stores have more shards.
_MAX_OPEN = 256


class RecordError(Exception):
    """A record cannot be read, because its shard is missing or damaged."""


class MissingShardError(RecordError):
    """The file of a shard does not exist or cannot be accessed."""


class RecordStore:
    """The records of a complete store; may be used from several threads, and pickled.

    Args:
      directory: of the store.

    Attributes:
      directory: of the store.
      manifest: its contents.

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
        # Two threads may open the same shard at the same time; then one of the readers is dropped.
        if reader is None:
            reader = self._open(shard)
            if len(self._readers) >= _MAX_OPEN:
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
            raise MissingShardError(f"{path} cannot be opened ({error.strerror})") from error
        if size != shard.size:
            raise RecordError(f"{path} has {size:,} bytes of {shard.size:,}")
        reader = ArrayRecordReader(str(path), _READER)
        if not reader.ok() or reader.num_records() != shard.count:
            raise RecordError(f"{path} is damaged")
        return reader


def verify(directory: epath.PathLike) -> list[str]:
    """Compares every shard with its checksum.

    Returns:
      A line for each shard that is missing or differs.

    Raises:
      UserError: there is no complete store.
    """
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
