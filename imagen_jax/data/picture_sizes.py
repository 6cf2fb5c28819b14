"""The sizes of all pictures in a set: read once from the headers of the files, then stored.

The stored table has rows of (stamp, width, height). It lies in `.imagen_jax/picture-sizes.table` in
the folder of the set, or in the user's cache where that folder cannot be written. A picture is
found in it by its stamp, which changes when the file changes. So only the headers of new and
changed pictures are read.
"""

from __future__ import annotations

import logging
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imagen_jax.data.formats.files import cache_paths, write_cache
from imagen_jax.data.images import stored_size
from imagen_jax.data.records import Records
from imagen_jax.data.source import BadItem
from imagen_jax.progress import ProgressLine

# The table is stored as if it were about a file of this name in the folder of the set.
_NAME, _KIND = "picture-sizes", "table"
_ROW = np.dtype([("stamp", "<u8"), ("width", "<i4"), ("height", "<i4")])
# Format and version. The checksum of the rows follows in eight bytes, then the rows.
_MAGIC = b"sizes 1\n"
# Bytes that hold all that precedes the pixels in most files, also a thumbnail or colour profile.
_HEAD = 64 << 10
# Formats that store size and orientation before the pixels.
_HEAD_FORMATS = ("JPEG", "PNG")
# Adjacent pictures are read by one thread, so that their row group is read once.
_CHUNK = 64
# Seconds between two saves of an unfinished table.
_SAVE_EVERY = 300.0

logger = logging.getLogger(__name__)


def load_sizes(records: Records, num_threads: int = 8) -> np.ndarray:
    """Width and height of every upright picture: `[N, 2]` int32; 0, 0 if it cannot be read.

    Args:
      records: the pictures.
      num_threads: reading threads, which mostly wait for the disk or the network.
    """
    stamps = records.stamps()
    place = records.folder / _NAME
    known = max((_read(path) for path in cache_paths(place, _KIND)), key=len)
    row = np.searchsorted(known["stamp"], stamps)
    found = row < len(known)
    found[found] = known["stamp"][row[found]] == stamps[found]
    sizes = np.zeros((len(stamps), 2), np.int32)
    sizes[found, 0] = known["width"][row[found]]
    sizes[found, 1] = known["height"][row[found]]
    missing = np.flatnonzero(~found)
    if not len(missing):
        return sizes

    progress = ProgressLine("pictures measured")
    progress(0, len(missing))
    saved = time.monotonic()
    chunks = [missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK)]
    with ThreadPoolExecutor(num_threads) as pool:
        measured = pool.map(lambda chunk: [_measure(records, int(i)) for i in chunk], chunks)
        for number, found_sizes in enumerate(measured, 1):
            sizes[chunks[number - 1]] = found_sizes
            done = min(number * _CHUNK, len(missing))
            progress(done, len(missing))
            if time.monotonic() - saved > _SAVE_EVERY:
                _write(place, known, stamps[missing[:done]], sizes[missing[:done]])
                saved = time.monotonic()
    _write(place, known, stamps[missing], sizes[missing])
    return sizes


def _measure(records: Records, index: int) -> tuple[int, int]:
    """Width and height of one picture; 0, 0 if it cannot be read."""
    try:
        return stored_size(records.head(index, _HEAD), _HEAD_FORMATS)
    except BadItem:
        pass  # another format, or a longer header
    try:
        return stored_size(records.record(index).image)
    except BadItem:
        return 0, 0


def _read(path: Path) -> np.ndarray:
    """The rows of a stored table, sorted by stamp; none if the table is missing or damaged."""
    none = np.zeros(0, _ROW)
    try:
        data = path.read_bytes()
    except OSError:
        return none
    head = len(_MAGIC) + 8
    rows = data[head:]
    checksum = zlib.crc32(rows).to_bytes(8, "little")
    if data[:head] != _MAGIC + checksum or len(rows) % _ROW.itemsize:
        return none
    return np.frombuffer(rows, _ROW)


def _write(place: Path, known: np.ndarray, stamps: np.ndarray, sizes: np.ndarray) -> None:
    """Stores the known rows and new ones."""
    new = np.zeros(len(stamps), _ROW)
    new["stamp"], new["width"], new["height"] = stamps, sizes[:, 0], sizes[:, 1]
    table = np.concatenate([known, new])
    _, first = np.unique(table["stamp"], return_index=True)
    rows = table[first].tobytes()
    data = _MAGIC + zlib.crc32(rows).to_bytes(8, "little") + rows
    try:
        write_cache(place, _KIND, data)
    except OSError as error:
        logger.warning("the picture sizes cannot be stored and will be read again: %s", error)
