"""Files of a stored set: finding and reading them, stamps of them, and caches beside them."""

from __future__ import annotations

import collections
import glob
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError
from imagen_jax.files import write_atomically

# Tables about a set that are computed once are stored in this folder beside it.
CACHE_FOLDER = ".imagen_jax"
# Folders of copies and thumbnails that systems make: macOS in archives, Synology, Windows.
_TWINS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
HIDDEN = "hidden pictures (a dot in front of the name, or in a folder such as __MACOSX)"
# A typing error in a range of files should not fill the memory.
_MOST_PATHS = 1_000_000

logger = logging.getLogger(__name__)


def find_files(path: str, suffix: str | tuple[str, ...], what: str) -> list[Path]:
    """The files that `path` names, sorted: files, globs, or all with `suffix` below a folder.

    Braces are expanded as in a shell: `{000..012}.tar` names thirteen files, `{a,b}.tar` two.
    Several paths are separated by `::`. Hidden files and folders are left out. Names that exist
    are never taken for patterns.

    Args:
      path: from the config.
      suffix: such as ".tar", or several.
      what: describes what the path should be, for the error message.

    Raises:
      UserError: there are none, or one that is named does not exist.
    """
    if not path:
        raise UserError(f"config.data.path is empty; set it to {what} (--config.data.path=...)")
    found: dict[Path, None] = {}
    for part in _paths(path):
        files = _find_in_part(part, suffix)
        if not files:
            suffixes = " or ".join(
                f"*{s}" for s in ([suffix] if isinstance(suffix, str) else suffix)
            )
            missing = f"holds no {suffixes} files" if os.path.isdir(part) else "does not exist"
            name = path if part == path else f"{path}: {part}"
            raise UserError(f"config.data.path={name} {missing}; set it to {what}")
        found |= dict.fromkeys(files)
    return sorted(found)


def _find_in_part(path: str, suffix: str | tuple[str, ...]) -> list[Path]:
    if not os.path.isdir(path):
        # A folder such as `set [b]` is no pattern, unlike what follows it.
        base = _existing_part(path)
        pattern = os.path.join(glob.escape(str(base)), os.path.relpath(path, base))
        return [base] if base == Path(path) else [Path(p) for p in glob.glob(pattern)]
    return [
        folder / name
        for folder, names, hidden in walk(Path(path))
        for name in names
        if not hidden and name.endswith(suffix) and not is_hidden(name)
    ]


def _paths(path: str) -> list[str]:
    """The paths, folders and globs that a path of the config names."""
    if os.path.exists(os.path.expanduser(path)):
        return [os.path.expanduser(path)]
    parts = [part for part in path.split("::") if part] or [path]
    return [os.path.expanduser(name) for part in parts for name in expand_braces(part)]


def expand_braces(text: str) -> list[str]:
    """The texts that braces stand for: `{a,b}`, `{3..12}`, `{000..012}`, also nested ones.

    Braces of another kind, and those that are not closed, stay as they are.

    Raises:
      UserError: more than a million texts.
    """
    for start, end in _brace_pairs(text):
        inside = _choices(text[start + 1 : end])
        if inside is None:
            continue
        rest = expand_braces(text[end + 1 :])
        heads = [text[:start] + head for choice in inside for head in expand_braces(choice)]
        if len(heads) * len(rest) > _MOST_PATHS:
            raise UserError(f"config.data.path={text} names more than {_MOST_PATHS:,} files")
        return [head + tail for head in heads for tail in rest]
    return [text]


def _brace_pairs(text: str) -> Iterator[tuple[int, int]]:
    """Positions of each outer opening brace and the one that closes it."""
    depth, start = 0, 0
    for place, character in enumerate(text):
        if character == "{":
            depth, start = depth + 1, start if depth else place
        elif character == "}" and depth:
            depth -= 1
            if not depth:
                yield start, place


def _choices(inside: str) -> list[str] | None:
    """What the text between braces stands for, None if it is not a range or list."""
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = map(int, match.groups())
        if abs(last - first) >= _MOST_PATHS:
            raise UserError(f"config.data.path: {{{inside}}} names more than {_MOST_PATHS:,} files")
        # As in a shell, a leading zero asks for numbers of one length.
        padded = any(len(number) > 1 and number[0] == "0" for number in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}}" for number in range(first, last + step, step)]
    choices, depth = [""], 0
    for character in inside:
        depth += (character == "{") - (character == "}")
        if character == "," and not depth:
            choices.append("")
        else:
            choices[-1] += character
    return choices if len(choices) > 1 else None


def walk(root: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """The folders below `root` and `root` itself: each with the names of its files, sorted.

    Links to folders are followed, but each folder is visited once, however many links lead to it.
    The third value is whether the folder, or one above it, is hidden; see `is_hidden`. A folder
    that cannot be read has no files. Links that lead nowhere count as files; pipes and devices,
    which might never end, do not.
    """
    visited: set[str] = set()
    # Real folders come first, so that a link into the set does not rename what it leads to.
    waiting = collections.deque([(root, False)])
    links: collections.deque[tuple[Path, bool]] = collections.deque()
    while waiting or links:
        folder, hidden = waiting.popleft() if waiting else links.popleft()
        try:
            place = os.path.realpath(folder)
            if place in visited:
                continue
            visited.add(place)
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            logger.warning("%s cannot be read: %s", folder, error)
            continue
        names = []
        for entry in found:
            try:
                if entry.is_dir():
                    below = Path(entry.path), hidden or is_hidden(entry.name)
                    (links if entry.is_symlink() else waiting).append(below)
                elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                    names.append(entry.name)
            except OSError as error:  # a link to itself, for example
                logger.warning("%s cannot be read: %s", entry.path, error)
        yield folder, names, hidden


def is_hidden(path: str) -> bool:
    """Whether programs hide the file: a name in the path begins with a dot, or is one of `_TWINS`.

    Such files are mostly copies (`.ipynb_checkpoints`) or no pictures (`._x.png` of macOS).
    """
    names = path.split("/")
    return any(name in _TWINS or (name.strip(".") and name[0] == ".") for name in names)


def folder_of(path: str) -> Path:
    """The folder of the files that `path` names, see `find_files`; of several, the common one."""
    found = {_existing_part(part) for part in _paths(path)}
    folders = {part if part.is_dir() else part.parent for part in found}
    if len(folders) == 1:
        return folders.pop()
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))


def composed(name: str) -> str:
    """The name with composed accents, so that names that look the same are the same.

    Some systems write the letter and its accent as two characters, others as one.
    """
    return unicodedata.normalize("NFC", name)


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


def name_and_size(path: Path, folder: Path) -> str:
    """The name of a file in `folder` and its size."""
    name = os.path.relpath(path, folder)
    try:
        return f"{name} {path.stat().st_size}"
    except OSError:
        return f"{name} is gone"


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
