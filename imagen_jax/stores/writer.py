"""Makes record stores of sharded ArrayRecord so that a kill loses nothing.

Each shard is made independently of all others, by whichever process owns it; what is there already
is not made again; and an interrupted job that is run again ends with the same bytes as one that was
left alone.
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
# Single records are read, or ranges of a few: one record a group.
_WRITER = {"none": "group_size:1,uncompressed", "zstd": "group_size:1,zstd:3"}


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """What a store is to be: the same for all that make it, wherever they run.

    Attributes:
      directory: of the store, local or mounted; made if needed.
      length: positions in all.
      shard_size: positions a shard.
      meta: what the store is made from and how, as plain JSON values. An unfinished store goes on
        only with the same.
      compression: "zstd", or "none" for records that are compressed already, such as pictures.
    """

    directory: str
    length: int
    shard_size: int
    meta: dict[str, Any]
    compression: str = "none"

    @property
    def num_shards(self) -> int:
        return -(-self.length // self.shard_size)

    def span(self, number: int) -> tuple[int, int]:
        """The positions [start, stop) of a shard."""
        return number * self.shard_size, min((number + 1) * self.shard_size, self.length)

    def values(self) -> dict[str, Any]:
        """What is stored of it. The directory is not: a store may be moved."""
        values = {name: getattr(self, name) for name in ("length", "shard_size", "compression")}
        return {"format": FORMAT, "meta": json.loads(json.dumps(self.meta)), **values}


# `read(start, stop, notes)` gives the records of the positions [start, stop) in order. It must
# depend on nothing else, and may leave positions out, counting why in `notes`.
Read = Callable[[int, int, collections.Counter[str]], Iterable[bytes]]


def write_shards(
    plan: StorePlan,
    read: Read,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest | None:
    """Makes the shards of this process that are not there yet, then the manifest if all are.

    Every process of a job calls it with the same arguments but `process_index`; they need not run
    at the same time, and a job that goes on may have another number of them.

    Args:
      plan: of the store.
      read: gives the records; called once for each shard that is missing.
      process_index, process_count: this process, of how many: it makes every process_count-th
        shard.
      progress: called with the positions done by this process and its total, after each shard
        (and once before the first).

    Returns:
      The manifest, or None while other processes have shards to make.

    Raises:
      UserError: as `begin_store`; the process is not one of them; a full disk (what is finished
        stays).
    """
    if not 0 <= process_index < process_count:
        raise UserError(f"process {process_index} of {process_count}: count from 0")
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
            # What killed processes have left of it; its owner alone is at work on it.
            _remove_leftovers(directory, _shard_name(i))
            _write_shard(plan, i, read)
            done += sizes[i]
            if progress:
                progress(done, total)
    shards = [_read_entry(directory, i) for i in range(plan.num_shards)]
    if None in shards:
        # Another process has more to make, or has just written the manifest.
        values = manifest_values(directory)
        return None if values is None else to_manifest(values)
    return finish_store(plan, shards)


def begin_store(plan: StorePlan) -> Manifest | None:
    """Makes the directory of a store, unless it is there. Several processes may do so at once.

    Returns:
      The manifest if the store is complete already.

    Raises:
      UserError: sizes out of range; the directory is in a bucket, or holds another store, or one
        begun with other settings (which is named); a full disk.
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
            f"a store cannot be written to {plan.directory}: mount the bucket and give a directory"
        )
    finished = manifest_values(directory)
    if finished is not None:
        _check_same(directory, _plan_of(finished), plan.values())
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
    """One shard of a store that was begun, unless it is there with the right checksum.

    May be called again for the same shard, also while another process is at work on it.

    Raises:
      UserError: the store was not begun where this process sees the directory; a full disk.
    """
    directory = epath.Path(plan.directory)
    if not (directory / UNFINISHED / _PLAN).exists():
        finished = manifest_values(directory)
        if finished is None:
            raise UserError(
                f"{plan.directory} is not the store that was begun: all machines must see it under "
                "the same path, on a common file system"
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
    """Writes the manifest once every shard is there. Several processes may do so at once.

    Args:
      plan: of the store.
      shards: all of them, in order.
    """
    directory = epath.Path(plan.directory)
    if [shard.file for shard in shards] != [_shard_name(i) for i in range(plan.num_shards)]:
        raise ValueError(f"{len(shards)} shards do not make a store of {plan.num_shards}")
    values = plan.values() | {"shards": [dataclasses.asdict(shard) for shard in shards]}
    with explain_full_disk(directory):
        write_atomically(directory / MANIFEST, _to_json(values))
    _remove_leftovers(directory, "*")
    (directory / UNFINISHED).rmtree(missing_ok=True)
    return to_manifest(values)


def _write_shard(plan: StorePlan, number: int, read: Read) -> Shard:
    """The file first, then its entry: an entry always speaks of a whole file."""
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
    """The parts of shards that killed processes have left."""
    for part in Path(directory).glob(f".{name}.*.tmp"):
        part.unlink(missing_ok=True)


def _check_same(directory: epath.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = ({**plan.pop("meta"), **plan} for plan in (dict(old), dict(new)))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        key = differing[0]
        raise UserError(
            f"{directory} holds a store made with other settings ({', '.join(differing)}: "
            f"{key} was {old.get(key)!r} and is now {new.get(key)!r}); "
            "use those again, or another directory"
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
