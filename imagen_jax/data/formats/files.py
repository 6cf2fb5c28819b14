"""Files of a stored set: finding and reading them, stamps of them, and caches beside them."""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from etils import epath

from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError
from imagen_jax.files import write_atomically

# Tables about a set that are computed once are stored in this folder beside it.
CACHE_FOLDER = ".imagen_jax"
# Extensions of picture files, in folders and tars.
EXTENSIONS = (
    ".avif",
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


def find_files(path: str, suffix: str, what: str) -> list[Path]:
    """The files that `path` names, sorted: one file, a glob, or all with `suffix` below a folder.

    Hidden files and folders are left out. Names that exist are never taken for patterns.

    Args:
      path: from the config.
      suffix: such as ".tar".
      what: describes what the path should be, for the error message.

    Raises:
      UserError: there are none.
    """
    if not path:
        raise UserError(f"config.data.path is empty; set it to {what} (--config.data.path=...)")
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = sorted(
            p
            for p in Path(path).rglob(f"*{suffix}")
            if not any(part.startswith(".") for part in p.relative_to(path).parts)
        )
    else:
        # A folder such as `set [b]` is no pattern, unlike what follows it.
        base = _existing_part(path)
        pattern = os.path.join(glob.escape(str(base)), os.path.relpath(path, base))
        found = [base] if base == Path(path) else sorted(Path(p) for p in glob.glob(pattern))
    if not found:
        missing = f"holds no *{suffix} files" if os.path.isdir(path) else "does not exist"
        raise UserError(f"config.data.path={path} {missing}; set it to {what}")
    return found


def composed(name: str) -> str:
    """The name with composed accents, so that names that look the same are the same.

    Some systems write the letter and its accent as two characters, others as one.
    """
    return unicodedata.normalize("NFC", name)


def folder_of(path: str) -> Path:
    """The folder of the files that `path` (a folder, a file or a glob) names."""
    found = _existing_part(os.path.expanduser(path))
    return found if found.is_dir() else found.parent


def _existing_part(path: str) -> Path:
    """`path` or the nearest folder above it that exists."""
    found = Path(path)
    while not os.path.lexists(found) and found != found.parent:
        found = found.parent
    return found


def read_range(path: Path, offset: int, size: int, missing: str = "shard is gone") -> bytes:
    """`size` bytes at `offset`. Opens the file each time, so that no file stays open.

    Args:
      missing: the kind of BadItem if the file does not exist.

    Raises:
      BadItem: the file does not exist, cannot be read or is too short.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
            # One call reads at most 2 GiB, and network file systems may return less.
            while len(data) < size and (
                more := os.pread(file.fileno(), size - len(data), offset + len(data))
            ):
                data += more
    except FileNotFoundError as error:
        raise BadItem(f"{path}: {error}", missing) from error
    except OSError as error:
        raise BadItem(f"{path}: {error}", "file cannot be read") from error
    if len(data) < size:
        raise BadItem(f"{path} ends before byte {offset + size}", "shard is cut short")
    return data


def file_stamp(path: Path, folder: Path) -> str:
    """A text that changes when a file changes, but not when the whole `folder` is moved."""
    name = os.path.relpath(path, folder)
    try:
        status = path.stat()
    except OSError:
        return f"{name} is gone"
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def record_stamps(parts: Iterable[tuple[str, int]]) -> np.ndarray:
    """One stamp for each of the N records of all parts: `[N]` uint64, distinct but for accidents.

    Args:
      parts: for each part, a text that changes when the part changes, and its number of records.
    """
    stamps = []
    for text, count in parts:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        # The finalizer of SplitMix64: a permutation of the 64-bit integers.
        bits = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits += np.frombuffer(digest, "<u8")
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        stamps.append(bits ^ (bits >> np.uint64(31)))
    return np.concatenate(stamps) if stamps else np.zeros(0, np.uint64)


def cache_paths(path: Path, kind: str) -> tuple[Path, ...]:
    """Where a table about a file may be stored: beside the file, or in the user's cache, if any."""
    absolute = path.resolve()
    beside = absolute.parent / CACHE_FOLDER / f"{path.name}.{kind}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    # Without a home, `~` stays as it is, and would be a folder of this name.
    if not cache.is_absolute():
        return (beside,)
    name = hashlib.blake2b(os.fsencode(absolute), digest_size=16).hexdigest()
    return beside, cache / "imagen_jax" / "offsets" / f"{name}.{kind}"


def write_cache(path: Path, kind: str, data: bytes) -> None:
    """Stores a table about a file at the first of its `cache_paths` that can be written.

    Raises:
      OSError: none of them can.
    """
    places = cache_paths(path, kind)
    for place in places:
        try:
            _write(place, data)
            return
        except OSError:
            if place == places[-1]:
                raise


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(epath.Path(path), data)
