"""Where the items of a large file lie in it: looked for once, then stored.

The index of a file is a table of 64-bit integers, one row an item, and bytes that the rows may
point to, in a file of its own in the folder `.imagen_jax` beside the indexed file, or below the
user's cache directory where that folder cannot be written. One row is read when one item is:
nothing is kept in memory, whatever the size of the set.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from etils import epath

from imagen_jax.data.formats.files import places
from imagen_jax.data.source import BadItem
from imagen_jax.files import write_atomically
from imagen_jax.progress import ProgressLine

FORMAT = 2
# Format, size and time of the indexed file, items left out, whether it is cut short, rows, columns,
# bytes behind the rows.
_HEADER = 8


@dataclasses.dataclass(frozen=True)
class Table:
    """What one file holds.

    Attributes:
      rows: `[N, C]` int64.
      left_out: items without what makes an item (a caption, say).
      is_cut: the file ends before its format says that it does.
      extra: bytes that the rows may point to.
    """

    rows: np.ndarray
    left_out: int = 0
    is_cut: bool = False
    extra: bytes = b""


@dataclasses.dataclass(frozen=True)
class Index:
    """The stored table of one file; a row is read from disk when it is asked for."""

    path: Path
    stored: Path
    columns: int
    length: int
    left_out: int
    is_cut: bool

    def row(self, index: int) -> tuple[int, ...]:
        """Row `index`. Raises BadItem if the index is gone."""
        width = 8 * self.columns
        data = read_range(self.stored, 8 * _HEADER + index * width, width, "index is gone")
        return tuple(np.frombuffer(data, "<i8").tolist())

    def extra(self, offset: int, size: int) -> bytes:
        """Bytes of the table's `extra`. Raises BadItem if the index is gone."""
        start = 8 * (_HEADER + self.length * self.columns)
        return read_range(self.stored, start + offset, size, "index is gone")


def load_indices(
    paths: list[Path], kind: str, columns: int, build: Callable[[Path], Table]
) -> tuple[list[Index], int]:
    """The indices of files; those that are missing or out of date are built first.

    Args:
      paths: of the files.
      kind: what is indexed, part of the name of the stored file.
      columns: of the tables.
      build: looks through one file.

    Returns:
      The indices in the order of the paths without those of files that cannot be read, and the
      number of these.
    """
    found = {path: _load(path, kind, columns) for path in paths}
    missing = [path for path, index in found.items() if index is None]
    if missing:
        progress = ProgressLine("files indexed")
        progress(0, len(missing))
        # Other processes may be at work on the same files: each begins with others, and finds done
        # what the rest have done.
        random.shuffle(missing)
        # Mostly waiting for the disk or the network.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            made = pool.map(lambda path: _make(path, kind, columns, build), missing)
            for done, (path, index) in enumerate(zip(missing, made, strict=True), 1):
                found[path] = index
                progress(done, len(missing))
    indices = [index for index in found.values() if index is not None]
    return indices, len(paths) - len(indices)


def read_range(path: Path, offset: int, size: int, gone: str = "shard is gone") -> bytes:
    """`size` bytes at `offset`. The file is opened anew, so that any number of them can be used.

    Raises:
      BadItem: it is not there (of kind `gone`), or ends before.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
            # A single call reads 2 GiB at most, and network file systems may give less.
            while len(data) < size and (
                more := os.pread(file.fileno(), size - len(data), offset + len(data))
            ):
                data += more
    except FileNotFoundError as error:
        raise BadItem(f"{path}: {error}", gone) from error
    except OSError as error:
        raise BadItem(f"{path}: {error}", "file cannot be read") from error
    if len(data) < size:
        raise BadItem(f"{path} ends before byte {offset + size}", "shard is cut short")
    return data


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _load(path: Path, kind: str, columns: int) -> Index | None:
    for stored in places(path, kind):
        try:
            with open(stored, "rb") as file:
                data = file.read(8 * _HEADER)
            size = stored.stat().st_size
            stamp = _stamp(path)
        except OSError:
            continue
        if len(data) < 8 * _HEADER:
            continue
        header = np.frombuffer(data, "<i8").tolist()
        if header[:3] != [FORMAT, *stamp]:
            continue
        left_out, is_cut, length, stored_columns, extra = header[3:]
        whole = size == 8 * (_HEADER + length * columns) + extra
        if whole and stored_columns == columns:
            return Index(path, stored, columns, length, left_out, bool(is_cut))
    return None


def _make(path: Path, kind: str, columns: int, build: Callable[[Path], Table]) -> Index | None:
    if index := _load(path, kind, columns):
        return index
    try:
        stamp = _stamp(path)
        table = build(path)
    except OSError:
        return None
    rows = table.rows.reshape(-1, columns).astype("<i8")
    numbers = (FORMAT, *stamp, table.left_out, table.is_cut, len(rows), columns, len(table.extra))
    data = np.array(numbers, "<i8").tobytes() + rows.tobytes() + table.extra
    beside, cached = places(path, kind)
    for stored in (beside, cached):
        try:
            stored.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(epath.Path(stored), data)
            break
        except OSError:
            if stored is cached:
                raise
    return _load(path, kind, columns)
