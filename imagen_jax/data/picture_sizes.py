"""The sizes of all pictures of a set: read once from the heads of the files, then stored.

What is stored is a table of (stamp, width, height) in `.imagen_jax/picture-sizes` in the folder of
the set, or below the user's cache directory where that folder cannot be written. A picture is
found in it by its stamp, which changes with the file: so those that are new or have changed are
read, and no others.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from etils import epath

from imagen_jax.data.formats.files import places
from imagen_jax.data.images import stored_size
from imagen_jax.data.records import Records
from imagen_jax.data.source import BadItem
from imagen_jax.files import write_atomically
from imagen_jax.progress import ProgressLine

NAME = "picture-sizes"
_ROW = np.dtype([("stamp", "<u8"), ("width", "<i4"), ("height", "<i4")])
# Format and version; the checksum of the rows follows, in eight bytes.
_MAGIC = b"sizes 1\n"
# Enough for what precedes the pixels of most files (an embedded thumbnail, a colour profile).
_HEAD = 64 << 10
# In these formats all that is wanted lies there.
_HEAD_FORMATS = ("JPEG", "PNG")
# Neighbours go to one thread, so that what they lie in (a row group) is read once.
_CHUNK = 64
# Seconds between two times that a long search is stored.
_SAVE_EVERY = 300.0

logger = logging.getLogger(__name__)


def load_sizes(records: Records, num_threads: int = 8) -> np.ndarray:
    """Width and height of every picture, upright: `[N, 2]` int32; 0, 0 for what is none.

    Args:
      records: the pictures. A format that can read the first bytes of a picture alone has a method
        `head(index, size)`; of the others whole records are read.
      num_threads: that read, mostly waiting for the disk or the network.
    """
    stamps = records.stamps()
    stored = places(records.home / NAME, "table")
    known = max((_read(path) for path in stored), key=len)
    place = np.searchsorted(known["stamp"], stamps)
    found = place < len(known)
    found[found] = known["stamp"][place[found]] == stamps[found]
    sizes = np.zeros((len(stamps), 2), np.int32)
    sizes[found, 0] = known["width"][place[found]]
    sizes[found, 1] = known["height"][place[found]]
    missing = np.flatnonzero(~found)
    if not len(missing):
        return sizes

    progress = ProgressLine("pictures measured")
    progress(0, len(missing))
    saved = time.monotonic()
    chunks = [missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK)]
    with ThreadPoolExecutor(num_threads) as pool:
        for number, measured in enumerate(pool.map(_measurer(records), chunks), 1):
            sizes[chunks[number - 1]] = measured
            done = min(number * _CHUNK, len(missing))
            progress(done, len(missing))
            if time.monotonic() - saved > _SAVE_EVERY:
                _write(stored, known, stamps[missing[:done]], sizes[missing[:done]])
                saved = time.monotonic()
    _write(stored, known, stamps[missing], sizes[missing])
    return sizes


def _measurer(records: Records) -> Callable[[np.ndarray], list[tuple[int, int]]]:
    head = getattr(records, "head", None)

    def measure(index: int) -> tuple[int, int]:
        if head is not None:
            try:
                return stored_size(head(index, _HEAD), _HEAD_FORMATS)
            except (BadItem, OSError):
                pass  # another format, or a longer head
        try:
            return stored_size(records.record(index).image)
        except BadItem:
            return 0, 0

    return lambda chunk: [measure(int(index)) for index in chunk]


def _read(path: Path) -> np.ndarray:
    """The rows of a stored table by stamp; none if there is no table, or it is damaged."""
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


def _write(
    stored: tuple[Path, Path], known: np.ndarray, stamps: np.ndarray, sizes: np.ndarray
) -> None:
    """Stores the known rows and new ones in the first of the places that can be written."""
    new = np.zeros(len(stamps), _ROW)
    new["stamp"], new["width"], new["height"] = stamps, sizes[:, 0], sizes[:, 1]
    table = np.concatenate([known, new])
    _, first = np.unique(table["stamp"], return_index=True)
    rows = table[first].tobytes()
    data = _MAGIC + zlib.crc32(rows).to_bytes(8, "little") + rows
    for path in stored:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(epath.Path(path), data)
            return
        except OSError as error:
            reason = error
    logger.warning("the sizes of the pictures cannot be stored and will be read again: %s", reason)
