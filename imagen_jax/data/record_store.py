"""Sharded ArrayRecord stores: written so that a kill loses nothing, read at random.

A store is a directory of `shard-00000.array_record` ... and `manifest.json`, which is written
last. Shard i holds what the positions [i * shard_size, (i + 1) * shard_size) of some numbered
collection come to, in order. So each shard is made independently of all others, by whichever
process owns it; what is there already is not made again; and an interrupted job that is run again
ends with the same bytes as one that was left alone.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from imagen_jax.errors import UserError
from imagen_jax.files import explain_full_disk, is_remote, temporary_beside, write_atomically

FORMAT = 1
MANIFEST = "manifest.json"
# Settings and finished shards of a store that is not complete.
UNFINISHED = "unfinished"
_PLAN = "plan.json"
COMPRESSIONS = ("none", "zstd")

# Single records, or ranges of a few, are read: one record a group, nothing ahead.
_WRITER = {"none": "group_size:1,uncompressed", "zstd": "group_size:1,zstd:3"}
_READER = "readahead_buffer_size:0,max_parallelism:0"
# Each open shard holds a file; a process may often have 1,024, and large stores have more shards.
_MOST_OPEN = 256


@dataclasses.dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard.

    Attributes:
      file: its name.
      count: records in it.
      size: bytes of the file.
      sha256: of the file, in hexadecimal.
      notes: what the writer counted while it made it (left-out items by reason, say).
    """

    file: str
    count: int
    size: int
    sha256: str
    notes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a complete store holds.

    Attributes:
      meta: what it was made from and how, as plain JSON values.
      length: positions of the collection that it was made from.
      shard_size: positions a shard.
      compression: "none" or "zstd".
      shards: in the order of the positions.
    """

    meta: dict[str, Any]
    length: int
    shard_size: int
    compression: str
    shards: tuple[Shard, ...]

    @property
    def num_records(self) -> int:
        return sum(shard.count for shard in self.shards)

    @property
    def notes(self) -> dict[str, int]:
        """The notes of all shards, added up."""
        total: collections.Counter[str] = collections.Counter()
        for shard in self.shards:
            total.update(shard.notes)
        return dict(total)


class RecordError(Exception):
    """A record cannot be read: its shard is gone or damaged."""


# --- writing ----------------------------------------------------------------------------------


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
        values = _manifest_values(directory)
        return None if values is None else _to_manifest(values)
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
    finished = _manifest_values(directory)
    if finished is not None:
        _check_same(directory, _plan_of(finished), plan.values())
        return _to_manifest(finished)
    unfinished = directory / UNFINISHED
    with explain_full_disk(directory):
        unfinished.mkdir(parents=True, exist_ok=True)
        started = _read_json(unfinished / _PLAN)
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
        finished = _manifest_values(directory)
        if finished is None:
            raise UserError(
                f"{plan.directory} is not the store that was begun: all machines must see it under "
                "the same path, on a common file system"
            )
        return Shard(**finished["shards"][number])
    shard = _read_entry(directory, number)
    if shard is not None:
        with contextlib.suppress(FileNotFoundError):
            if _sha256(Path(directory / shard.file)) == shard.sha256:
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
    return _to_manifest(values)


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
            sha256=_sha256(temporary),
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


# --- reading ----------------------------------------------------------------------------------


def read_manifest(directory: epath.PathLike) -> Manifest:
    """The manifest of a complete store. Raises UserError where there is none."""
    directory = epath.Path(directory)
    values = _manifest_values(directory)
    if values is None:
        if (directory / UNFINISHED).exists():
            raise UserError(
                f"the store {directory} is not complete; run the command that makes it again, "
                "it goes on where it stopped"
            )
        raise UserError(f"{directory} is not a record store: it has no {MANIFEST}")
    return _to_manifest(values)


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
            digest = _sha256(path)
        except OSError as error:
            problems.append(f"{shard.file}: {error.strerror}")
            continue
        if digest != shard.sha256:
            problems.append(f"{shard.file}: not what was written")
    return problems


# --- progress ---------------------------------------------------------------------------------


class ProgressLine:
    """Prints how far a long job is, at most once in `every` seconds, with an estimate of the rest.

    Args:
      unit: what is counted, such as "pictures".
      every: seconds between two lines.
    """

    def __init__(self, unit: str, every: float = 10.0):
        self._unit = unit
        self._every = every
        self._first: tuple[float, int] | None = None
        self._last = -float("inf")

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
            if done:
                print(f"{done:,} of {total:,} {self._unit} were done before", flush=True)
            return
        if now - self._last < self._every and done < total:
            return
        self._last = now
        start, before = self._first
        rate = (done - before) / max(now - start, 1e-9)
        left = f", {(total - done) / rate / 60:.1f} min left" if rate and done < total else ""
        print(f"{done:,} of {total:,} {self._unit}, {rate:,.0f}/s{left}", flush=True)


# --- files ------------------------------------------------------------------------------------


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.array_record"


def _entry_path(directory: epath.Path, number: int) -> epath.Path:
    return directory / UNFINISHED / f"{_shard_name(number)}.json"


def _read_entry(directory: epath.Path, number: int) -> Shard | None:
    values = _read_json(_entry_path(directory, number))
    return None if values is None else Shard(**values)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_json(values: Any) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it to make it again") from error


def _manifest_values(directory: epath.Path) -> dict[str, Any] | None:
    values = _read_json(directory / MANIFEST)
    if values is None:
        return None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{directory / MANIFEST} is not of a record store of format {FORMAT}")
    return values


def _plan_of(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "shards"}


def _to_manifest(values: dict[str, Any]) -> Manifest:
    return Manifest(
        meta=values["meta"],
        length=values["length"],
        shard_size=values["shard_size"],
        compression=values["compression"],
        shards=tuple(Shard(**shard) for shard in values["shards"]),
    )
