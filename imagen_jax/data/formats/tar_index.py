"""Scans a tar of the webdataset layout: where the picture and the texts of each item lie.

The files of an item have the same name up to the first dot: `000000012.jpg`, `000000012.txt`,
`000000012.json`. Names may have further dots if picture and text share them: `0.17.jpg` and
`0.17.txt`. Other readers need the files of an item side by side; here they may lie anywhere in the
tar, because the pictures are read at random.
"""

from __future__ import annotations

import collections
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imagen_jax.data.formats.files import HIDDEN, composed, is_hidden
from imagen_jax.data.formats.offsets import Table
from imagen_jax.data.images import picture_endings, why_not_read

# Offset and size of the picture, of the .txt and of the .json. Size -1: the item has no such file.
COLUMNS = 6
# First bytes of compressed files, and what unpacks them.
_COMPRESSIONS = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
}
_BLOCK = 512


def index_tar(path: Path, extension: str = "", captions: str = "text") -> Table:
    """Scans one tar: `[N, 6]`, offset and size of picture, `.txt` and `.json` of each item.

    For labels, the `.cls` takes the place of the `.txt`. If the tar is cut short, an item that is
    not whole is left out. Several tars that were concatenated are one.

    Args:
      path: of the tar.
      extension: of the pictures, without its dot; empty: the usual ones.
      captions: what they are, see SourceConfig. With "none", a picture alone is an item.

    Raises:
      OSError: the file cannot be read.
    """
    items = _Items(extension, captions)
    is_cut = False
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if command := _compression(file):
            items.left_out[f"tars are compressed, so not read at random: {command} them"] += 1
            return Table(np.zeros((0, COLUMNS), np.int64), items.left_out)
        start: int | None = 0
        while start is not None:
            end, is_whole = _scan(file, start, size, items)
            items.end_tar()
            is_cut = is_cut or not is_whole
            start = _next_tar(file, end) if is_whole else None
    return Table(items.table(), +items.left_out, is_cut)


def _compression(file: BinaryIO) -> str:
    """The command that unpacks a compressed file, "" if it is not compressed."""
    head = file.read(6)
    return next((what for magic, what in _COMPRESSIONS.items() if head.startswith(magic)), "")


def _scan(file: BinaryIO, start: int, size: int, items: _Items) -> tuple[int, bool]:
    """Adds the members of the tar at `start` to the items.

    Returns:
      The end of the last member, and whether the tar is whole.
    """
    file.seek(start)
    end = start
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            while (member := tar.next()) is not None:
                # tarfile would keep all members, millions of them, in memory.
                tar.members.clear()
                stop = member.offset_data + member.size
                if stop > size:
                    return end, False
                end = -(-stop // _BLOCK) * _BLOCK
                if member.isreg() and not member.issparse():
                    items.add(member.name, member.offset_data, member.size)
                elif member.islnk() or member.issym():
                    items.add_link(member.name)
    # Malformed numbers in PAX headers, for example, are ValueErrors.
    except (tarfile.TarError, ValueError, EOFError):
        return end, False
    # tarfile stops at a damaged header as at the end, but a whole tar ends with 1024 zero bytes.
    file.seek(end)
    return end, end > start and file.read(2 * _BLOCK) == bytes(2 * _BLOCK)


def _next_tar(file: BinaryIO, start: int) -> int | None:
    """Where the next tar begins after the zeros from `start` on, None at the end of the file."""
    file.seek(start)
    while data := file.read(1 << 20):
        if rest := data.lstrip(b"\0"):
            return start + (len(data) - len(rest)) // _BLOCK * _BLOCK
        start += len(data)
    return None


class _Items:
    """Groups the members of a tar to items.

    Attributes:
      left_out: what is not an item (reason: number).
    """

    def __init__(self, extension: str, captions: str):
        self.left_out: collections.Counter[str] = collections.Counter()
        self._pictures = (f".{extension}",) if extension else picture_endings()
        self._texts = {".cls" if captions == "labels" else ".txt": 2, ".json": 4}
        self._needs_text = captions != "none"
        self._rows: list[list[int]] = []
        # The adjacent files of one name, by what their names have after the first dot and before
        # the extension.
        self._name: tuple[str, str] | None = None
        self._files: dict[str, list[int]] = {}
        # By full name, what is not yet an item.
        self._parts: dict[tuple[str, str, str], list[int]] = {}

    def add(self, name: str, offset: int, size: int) -> None:
        """Adds a file."""
        folder, base = os.path.split(name)
        ending = self._ending(base)
        if ending is None:
            if reason := why_not_read(os.path.splitext(base)[1].lower()):
                self.left_out[reason] += 1
            return
        if is_hidden(name):
            self.left_out[HIDDEN] += ending in self._pictures
            return
        stem, _, rest = composed(base).partition(".")
        if (folder, stem) != self._name:
            self._close()
            self._name = folder, stem
        row = self._files.setdefault(
            rest[: -len(ending)] if len(rest) >= len(ending) else "", [-1] * COLUMNS
        )
        column = self._texts.get(ending, 0)
        if column or row[1] < 0:  # the first of several pictures
            row[column : column + 2] = offset, size

    def add_link(self, name: str) -> None:
        """Counts a link, which has no data of its own."""
        if self._ending(os.path.basename(name)):
            self.left_out["links in tars, which are not followed"] += 1

    def _ending(self, base: str) -> str | None:
        """The extension of a picture or text in lower case, None for other files."""
        base = base.lower()
        return next((e for e in (*self._pictures, *self._texts) if base.endswith(e)), None)

    def _close(self) -> None:
        """Divides the adjacent files of one name into items and parts of items."""
        for middle, row in self._files.items():
            if self._is_whole(row):
                self._rows.append(row)
            # A further picture of an item, such as `0.mask.png` beside `0.jpg`.
            elif not (middle and "" in self._files and self._is_whole(self._files[""])):
                part = self._parts.setdefault((*self._name, middle), [-1] * COLUMNS)
                for column in range(0, COLUMNS, 2):
                    if part[column + 1] < 0:
                        part[column : column + 2] = row[column : column + 2]
        self._name, self._files = None, {}

    def end_tar(self) -> None:
        """Joins what is not adjacent, and counts what has no counterpart."""
        self._close()
        for (_, _, middle), row in self._parts.items():
            if self._is_whole(row):
                self._rows.append(row)
            elif middle and row[1] >= 0:
                self.left_out[
                    "pictures whose names have further dots, without a text of the same name"
                ] += 1
            else:
                self.left_out["items without a picture or without a caption"] += 1
        self._parts = {}

    def _is_whole(self, row: list[int]) -> bool:
        return row[1] >= 0 and (not self._needs_text or row[3] >= 0 or row[5] >= 0)

    def table(self) -> np.ndarray:
        """The rows `[N, 6]` in the order of the tar."""
        rows = sorted(self._rows, key=lambda row: min(o for o in row[::2] if o >= 0))
        return np.array(rows, np.int64).reshape(-1, COLUMNS)
