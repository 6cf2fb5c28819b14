"""The files of a stored set: how they are found, and stamps that change with them."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from imagen_jax.errors import UserError

# What is looked up once for a set is stored in this folder beside it.
FOLDER = ".imagen_jax"
# Of pictures, in folders and tars.
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
    """The files that `path` means, sorted: itself, a glob, or all with `suffix` below a folder.

    Raises:
      UserError: there are none.
    """
    if not path:
        raise UserError(f"config.data.path is empty; set it to {what} (--config.data.path=...)")
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = sorted(p for p in Path(path).rglob(f"*{suffix}") if not p.name.startswith("."))
    else:
        found = sorted(Path(p) for p in glob.glob(path))
    if not found:
        missing = f"holds no *{suffix} files" if os.path.isdir(path) else "does not exist"
        raise UserError(f"config.data.path={path} {missing}; set it to {what}")
    return found


def home_of(path: str) -> Path:
    """The folder that a config's `path` (a folder, a file or a glob) names."""
    found = Path(os.path.expanduser(path))
    return found if found.is_dir() else found.parent


def file_stamp(path: Path, home: Path) -> str:
    """Text that changes when a file does, but not when its whole folder is moved."""
    try:
        status = path.stat()
    except OSError:
        return f"{os.path.relpath(path, home)} is gone"
    return f"{os.path.relpath(path, home)} {status.st_size} {status.st_mtime_ns}"


def stamp(parts: Iterable[tuple[str, int]]) -> np.ndarray:
    """A `[N]` uint64 number for each of the N records of parts, alike only by accident.

    Args:
      parts: a text that changes when the part does, and the number of its records.
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


def places(path: Path, kind: str) -> tuple[Path, Path]:
    """Where the index of a file may lie: beside it, or in the cache."""
    absolute = path.resolve()
    name = hashlib.blake2b(str(absolute).encode(), digest_size=16).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        absolute.parent / FOLDER / f"{path.name}.{kind}",
        cache / "imagen_jax" / "offsets" / f"{name}.{kind}",
    )
