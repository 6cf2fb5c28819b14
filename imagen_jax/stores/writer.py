"""Writes record stores of sharded ArrayRecord, so that a killed job loses no finished shard.

Each shard is written independently of all others by the process that owns it. Finished shards are
not written again. An interrupted job that is run again writes the same bytes as one that was not
interrupted.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.files import explain_full_disk, is_remote, temporary_beside, write_atomically
from imagen_jax.stores.manifest import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    Manifest,
    Shard,
    manifest_values,
    read_json,
    sha256,
    to_manifest,
)

COMPRESSIONS = ("none", "zstd")
_PLAN = "plan.json"
# One record a group, since single records are read.
_WRITER = {"none": "group_size:1,uncompressed", "zstd": "group_size:1,zstd:3"}


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """Settings of a store, which are the same for all processes that write it.

    Attributes:
      directory: of the store, local or mounted; created if needed.
      length: number of positions of the collection.
      shard_size: positions a shard.
      meta: what the store is made from and how, as plain JSON values. An unfinished store can only
        be continued with the same values.
      compression: "zstd", or "none" for records that are already compressed, such as pictures.
    """

    directory: str
    length: int
    shard_size: int
    meta: dict[str, Any]
    compression: str = "none"

    @property
    def num_shards(self) -> int:
        """Number of shards; the last one may have fewer positions."""
        return -(-self.length // self.shard_size)

    def span(self, number: int) -> tuple[int, int]:
        """The positions [start, stop) of a shard."""
        return number * self.shard_size, min((number + 1) * self.shard_size, self.length)

    def values(self) -> dict[str, Any]:
        """The plan as JSON values, without the directory, since a store may be moved."""
        values = {name: getattr(self, name) for name in ("length", "shard_size", "compression")}
        return {"format": FORMAT, "meta": json.loads(json.dumps(self.meta)), **values}


# `read(start, stop, notes)` yields the records of the positions [start, stop) in order. They must
# depend on nothing else. It may leave positions out, and counts the reasons in `notes`.
Read = Callable[[int, int, collections.Counter[str]], Iterable[bytes]]


def write_shards(
    plan: StorePlan,
    read: Read,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest | None:
    """Writes the missing shards of this process, then the manifest if all shards exist.

    All processes of a job call it with the same arguments except `process_index`. They need not
    run at the same time, and a job may be continued with another number of processes.

    Args:
      plan: of the store.
      read: yields the records; called once for each missing shard.
      process_index, process_count: index of this process and number of processes. A process writes
        every process_count-th shard.
      progress: called with the positions that this process has done and their total, before the
        first shard and after each.

    Returns:
      The manifest, or None while other processes have shards to write.

    Raises:
      UserError: as `begin_store`; the process index is out of range; the disk is full (finished
        shards are kept).
    """
    if not 0 <= process_index < process_count:
        raise UserError(
            f"process {process_index} of {process_count} does not exist; processes are numbered "
            "from 0"
        )
    finished = begin_store(plan)
    if finished is not None:
        return finished
    directory = epath.Path(plan.directory)
    own = range(process_index, plan.num_shards, process_count)
    sizes = {i: stop - start for i in own for start, stop in [plan.span(i)]}
    missing = [i for i in own if not _entry_path(directory, i).exists()]
    done, total = sum(sizes.values()) - sum(sizes[i] for i in missing), sum(sizes.values())
    if progress:
        progress(done, total)
    with explain_full_disk(directory):
        for i in missing:
            # Files that killed processes have left. No other process writes this shard.
            _remove_leftovers(directory, _shard_name(i))
            _write_shard(plan, i, read)
            done += sizes[i]
            if progress:
                progress(done, total)
    shards = [_read_entry(directory, i) for i in range(plan.num_shards)]
    if None in shards:
        # Another process has shards to write, or has just written the manifest.
        values = manifest_values(directory)
        return None if values is None else to_manifest(values)
    return finish_store(plan, shards)


def begin_store(plan: StorePlan) -> Manifest | None:
    """Creates the directory and the plan of a store. Several processes may do so at once.

    Returns:
      The manifest if the store is already complete, else None.

    Raises:
      UserError: sizes are out of range; the directory is in a bucket, or holds a store with other
        settings (the message names them); the disk is full.
    """
    if plan.length < 1 or plan.shard_size < 1:
        raise UserError(
            f"{plan.length} items in shards of {plan.shard_size}: both must be at least 1"
        )
    if plan.compression not in COMPRESSIONS:
        raise UserError(
            f"compression={plan.compression!r} must be one of {', '.join(COMPRESSIONS)}"
        )
    directory = epath.Path(plan.directory)
    if is_remote(directory):
        raise UserError(
            f"a store cannot be written to {plan.directory}; mount the bucket and use its directory"
        )
    finished = manifest_values(directory)
    if finished is not None:
        _check_same(directory, _plan_of(finished), plan.values())
        # A process that is killed after it wrote the manifest leaves these files behind.
        (directory / UNFINISHED).rmtree(missing_ok=True)
        return to_manifest(finished)
    unfinished = directory / UNFINISHED
    with explain_full_disk(directory):
        unfinished.mkdir(parents=True, exist_ok=True)
        started = read_json(unfinished / _PLAN)
        if started is None:
            write_atomically(unfinished / _PLAN, _to_json(plan.values()))
        else:
            _check_same(directory, started, plan.values())
    return None


def make_shard(plan: StorePlan, number: int, read: Read) -> Shard:
    """Writes one shard of a store that was begun, unless it exists with the right checksum.

    May be called again for the same shard, even while another process is writing it.

    Raises:
      UserError: the directory, as this process sees it, has no store that was begun; the disk is
        full.
    """
    directory = epath.Path(plan.directory)
    if not (directory / UNFINISHED / _PLAN).exists():
        finished = manifest_values(directory)
        if finished is None:
            raise UserError(
                f"{plan.directory} is not the store that was begun; all machines must see it under "
                "the same path, on a shared file system"
            )
        return Shard(**finished["shards"][number])
    shard = _read_entry(directory, number)
    if shard is not None:
        with contextlib.suppress(FileNotFoundError):
            if sha256(Path(directory / shard.file)) == shard.sha256:
                return shard
    with explain_full_disk(directory):
        return _write_shard(plan, number, read)


def finish_store(plan: StorePlan, shards: Sequence[Shard]) -> Manifest:
    """Writes the manifest, once all shards are written. Several processes may do so at once.

    Args:
      plan: of the store.
      shards: all shards, in order.
    """
    directory = epath.Path(plan.directory)
    if [shard.file for shard in shards] != [_shard_name(i) for i in range(plan.num_shards)]:
        raise ValueError(f"these {len(shards)} shards are not the {plan.num_shards} of the store")
    values = plan.values() | {"shards": [dataclasses.asdict(shard) for shard in shards]}
    with explain_full_disk(directory):
        write_atomically(directory / MANIFEST, _to_json(values))
    _remove_leftovers(directory, "*")
    (directory / UNFINISHED).rmtree(missing_ok=True)
    return to_manifest(values)


def _write_shard(plan: StorePlan, number: int, read: Read) -> Shard:
    """Writes the file first and then its entry, so that an entry means that the file is whole."""
    from array_record.python.array_record_module import ArrayRecordWriter

    directory, name = epath.Path(plan.directory), _shard_name(number)
    notes: collections.Counter[str] = collections.Counter()
    temporary = Path(temporary_beside(directory / name))
    count = 0
    try:
        writer = ArrayRecordWriter(str(temporary), _WRITER[plan.compression])
        try:
            for record in read(*plan.span(number), notes):
                writer.write(record)
                count += 1
        finally:
            writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        shard = Shard(
            file=name,
            count=count,
            size=temporary.stat().st_size,
            sha256=sha256(temporary),
            notes=dict(sorted(notes.items())),
        )
        temporary.replace(Path(directory / name))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    write_atomically(_entry_path(directory, number), _to_json(dataclasses.asdict(shard)))
    return shard


def _remove_leftovers(directory: epath.Path, name: str) -> None:
    """Removes partial shards that killed processes have left."""
    for part in Path(directory).glob(f".{name}.*.tmp"):
        part.unlink(missing_ok=True)


def _check_same(directory: epath.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError if two plans differ."""
    old, new = ({**plan.pop("meta"), **plan} for plan in (dict(old), dict(new)))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        key = differing[0]
        raise UserError(
            f"{directory} holds a store made with other settings ({', '.join(differing)}: "
            f"{key} was {old.get(key)!r} and is now {new.get(key)!r}); "
            "use the earlier settings or another directory"
        )


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.array_record"


def _entry_path(directory: epath.Path, number: int) -> epath.Path:
    return directory / UNFINISHED / f"{_shard_name(number)}.json"


def _read_entry(directory: epath.Path, number: int) -> Shard | None:
    values = read_json(_entry_path(directory, number))
    return None if values is None else Shard(**values)


def _to_json(values: Any) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _plan_of(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "shards"}
