"""Stored indices of large files: where each item lies in its file.

Each file is scanned once. Its index is a table of 64-bit integers with one row an item, and bytes
that the rows may refer to. It is stored in a file of its own, in the folder `.imagen_jax` beside
the indexed file, or in the user's cache where that folder cannot be written. Reading an item reads
one row from disk. Nothing is kept in memory, however large the set is.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from imagen_jax.data.formats.files import (
    cache_paths,
    file_stamp,
    name_and_size,
    read_range,
    record_stamps,
    write_cache,
)
from imagen_jax.data.parts import locate
from imagen_jax.errors import UserError
from imagen_jax.progress import ProgressLine

FORMAT = 3
# Integers before the rows: the format, size and time of the indexed file, bytes of what was left
# out (JSON, at the end), whether the file is cut short, rows, columns, and bytes after the rows.
_HEADER = 8


@dataclasses.dataclass(frozen=True)
class Table:
    """The index of one file before it is stored.

    Attributes:
      rows: `[N, C]` int64.
      left_out: what is no item, for example pictures without a caption (reason: number).
      is_cut: whether the file ends earlier than its format says.
      extra: bytes that the rows may refer to.
    """

    rows: np.ndarray
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    is_cut: bool = False
    extra: bytes = b""


@dataclasses.dataclass(frozen=True)
class Index:
    """The stored index of one file; each row is read from disk when it is needed."""

    path: Path
    # Of the file when it was indexed.
    size: int
    stored: Path
    columns: int
    length: int
    left_out: Mapping[str, int]
    is_cut: bool
    # Whether the file can be reached now.
    is_reachable: bool

    def row(self, index: int) -> tuple[int, ...]:
        """Row `index`. Raises BadItem if the stored index is gone."""
        width = 8 * self.columns
        data = read_range(self.stored, 8 * _HEADER + index * width, width, "index is gone")
        return tuple(np.frombuffer(data, "<i8").tolist())

    def extra(self, offset: int, size: int) -> bytes:
        """Bytes of the table's `extra`. Raises BadItem if the stored index is gone."""
        start = 8 * (_HEADER + self.length * self.columns)
        return read_range(self.stored, start + offset, size, "index is gone")


@dataclasses.dataclass(frozen=True)
class IndexedFiles:
    """The items of several indexed files, one file after the other.

    Attributes:
      paths: of all files.
      indices: of the files that can be read, or that could be when they were indexed: the items of
        a file that is lost later keep their places.
      unreadable: the number of files that cannot be read.
      ends: for each index, the number of items up to its last one.
    """

    paths: tuple[Path, ...]
    indices: tuple[Index, ...]
    unreadable: int
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def left_out(self) -> collections.Counter[str]:
        """What is no item in all files (reason: number)."""
        total: collections.Counter[str] = collections.Counter()
        for index in self.indices:
            total.update(index.left_out)
        return total

    @property
    def num_cut(self) -> int:
        """Files that end earlier than their format says."""
        return sum(index.is_cut for index in self.indices)

    def locate(self, index: int) -> tuple[Index, int]:
        """The file of an item, and the item's row in the index of that file."""
        number, row = locate(self.ends, index)
        return self.indices[number], row

    def parts(self, folder: Path) -> Iterator[tuple[str, int]]:
        """For each file its name and size, and its number of items, see `Records`."""
        found = {index.path: index for index in self.indices}
        for path in self.paths:
            # A file that cannot be reached at the moment counts as it was.
            if (index := found.get(path)) is not None:
                yield f"{os.path.relpath(path, folder)} {index.size}", index.length
            else:
                yield name_and_size(path, folder), 0

    def stamps(self, folder: Path, settings: str) -> np.ndarray:
        """One stamp an item: `[len]` uint64, see `Records`.

        Args:
          folder: of the set.
          settings: of the config, if other settings give other pictures.
        """
        return record_stamps(
            (f"{settings} {file_stamp(index.path, folder)}", index.length) for index in self.indices
        )


def load_indices(
    paths: list[Path], kind: str, columns: int, build: Callable[[Path], Table]
) -> IndexedFiles:
    """The indices of files, in the order of the paths; missing and outdated ones are built.

    Args:
      paths: of the files.
      kind: what is indexed, part of the name of the stored file.
      columns: of the tables.
      build: scans one file; raises OSError if it cannot be read.
    """
    found = {path: _load(path, kind, columns) for path in paths}
    missing = [path for path, index in found.items() if index is None]
    if missing:
        progress = ProgressLine("files indexed")
        progress(0, len(missing))
        # Other processes may index the same files. In random order they share the work: each skips
        # what another has finished.
        random.shuffle(missing)
        # The threads mostly wait for the disk or the network.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            built = pool.map(lambda path: _build(path, kind, columns, build), missing)
            for done, (path, index) in enumerate(zip(missing, built, strict=True), 1):
                found[path] = index
                progress(done, len(missing))
    indices = tuple(index for index in found.values() if index is not None)
    ends = tuple(itertools.accumulate(index.length for index in indices))
    unreadable = sum(index is None or not index.is_reachable for index in found.values())
    return IndexedFiles(tuple(paths), indices, unreadable, ends)


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _load(path: Path, kind: str, columns: int) -> Index | None:
    """The stored index of a file; None if there is none, or it is outdated or damaged.

    That of a file that cannot be reached counts as up to date.
    """
    for stored in cache_paths(path, kind):
        try:
            with open(stored, "rb") as file:
                data = file.read(8 * _HEADER)
                if len(data) < 8 * _HEADER:
                    continue
                header = np.frombuffer(data, "<i8").tolist()
                reasons, is_cut, length, stored_columns, extra = header[3:]
                end = 8 * (_HEADER + length * columns) + extra
                stored_size = stored.stat().st_size
                if header[0] != FORMAT or stored_columns != columns or stored_size != end + reasons:
                    continue
                file.seek(end)
                left_out = json.loads(file.read(reasons))
        except (OSError, ValueError):
            continue
        try:
            size_and_time = _size_and_time(path)
        except OSError:
            # The file is listed but cannot be reached at the moment. Its items keep their places.
            size_and_time = None
        if size_and_time and header[1:3] != [*size_and_time]:
            continue
        return Index(
            path=path,
            size=header[1],
            stored=stored,
            columns=columns,
            length=length,
            left_out=left_out,
            is_cut=bool(is_cut),
            is_reachable=size_and_time is not None,
        )
    return None


def _build(path: Path, kind: str, columns: int, build: Callable[[Path], Table]) -> Index | None:
    """Builds and stores the index of a file; None if the file cannot be read."""
    if index := _load(path, kind, columns):
        return index
    try:
        size_and_time = _size_and_time(path)
        table = build(path)
    except OSError:
        return None
    rows = table.rows.reshape(-1, columns).astype("<i8")
    left_out = json.dumps(table.left_out).encode()
    header = (len(left_out), table.is_cut, len(rows), columns, len(table.extra))
    data = np.array((FORMAT, *size_and_time, *header), "<i8").tobytes()
    try:
        write_cache(path, kind, data + rows.tobytes() + table.extra + left_out)
    except OSError as error:
        places = " or ".join(str(place.parent) for place in cache_paths(path, kind))
        raise UserError(
            f"the index of {path} cannot be written to {places} ({error}); make such a folder "
            "writable, or set the environment variable XDG_CACHE_HOME to one that is"
        ) from error
    return _load(path, kind, columns)
