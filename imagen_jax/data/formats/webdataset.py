"""Tar shards in the webdataset layout, such as img2dataset writes, read at random.

The files of one item follow each other and have one name up to the first dot:
`000000012.jpg`, `000000012.txt`, `000000012.json`.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import captions_in_fields, clean_caption, score_in_field
from imagen_jax.data.formats.files import EXTENSIONS, file_stamp, find_files, home_of, stamp
from imagen_jax.data.formats.offsets import Index, Table, load_indices, read_range
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem

# Offset and size of the picture, of the .txt and of the .json; size -1: there is none.
_COLUMNS = 6


class TarRecords:
    """The items of tar shards, in the order of the shards' names.

    Where the items lie is looked for once and stored, see `offsets`. The caption is the `.txt`, or
    where there is none (or `caption_fields` names others) the JSON's.

    Args:
      config: `path` is a folder with `.tar` files below it, or a glob of them. `image_field` is
        the extension of the pictures (empty: any), `caption_fields` may have "txt" and keys of the
        JSON.

    Attributes:
      home: see `Records`.
      skipped: items without a picture or caption, shards cut short or unreadable.

    Raises:
      UserError: there are no shards.
    """

    def __init__(self, config: SourceConfig):
        paths = find_files(config.path, ".tar", "a folder of .tar shards, or a glob of them")
        extension = config.image_field.lstrip(".").lower()
        self.home = home_of(config.path)
        self._extension = extension
        self._fields = config.caption_fields
        self._score_field = config.score_field
        self._indices, unreadable = load_indices(
            paths,
            f"tar-{extension or 'any'}",
            _COLUMNS,
            lambda path: index_tar(path, extension),
        )
        self._ends = list(itertools.accumulate(index.length for index in self._indices))
        self.skipped: collections.Counter[str] = collections.Counter()
        for reason, number in (
            (
                "items without a picture or without a caption",
                sum(i.left_out for i in self._indices),
            ),
            ("shards are cut short or damaged; their whole items are used", self._count_cut()),
            ("shards cannot be read", unreadable),
        ):
            if number:
                self.skipped[reason] = number

    def _count_cut(self) -> int:
        return sum(index.is_cut for index in self._indices)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def stamps(self) -> np.ndarray:
        return stamp(
            (f"{self._extension} {file_stamp(index.path, self.home)}", index.length)
            for index in self._indices
        )

    def head(self, index: int, size: int) -> bytes:
        shard, within = self._find(index)
        offset, whole, *_ = shard.row(within)
        return read_range(shard.path, offset, min(size, whole))

    def _find(self, index: int) -> tuple[Index, int]:
        number = bisect.bisect_right(self._ends, index)
        shard = self._indices[number]
        return shard, index - (self._ends[number] - shard.length)

    def record(self, index: int) -> Record:
        shard, within = self._find(index)
        image, image_size, text, text_size, data, data_size = shard.row(within)
        key = f"{shard.path.name}[{within}]"
        values = {}
        # Most sets need no JSON: one read less.
        if data_size >= 0 and (
            self._score_field or text_size < 0 or any(f != "txt" for f in self._fields)
        ):
            values = _read_json(read_range(shard.path, data, data_size), key)
        captions: tuple[str, ...] = ()
        if text_size >= 0 and (not self._fields or "txt" in self._fields):
            caption = clean_caption(read_range(shard.path, text, text_size))
            captions = (caption,) if caption else ()
        if self._fields or not captions:
            names = tuple(field for field in self._fields if field != "txt")
            if names or not self._fields:
                captions += captions_in_fields(values, names)
        return Record(
            key=key,
            image=read_range(shard.path, image, image_size),
            captions=captions,
            score=score_in_field(values, self._score_field),
        )


def index_tar(path: Path, extension: str = "") -> Table:
    """Looks through one tar: `[N, 6]`, offset and size of picture, `.txt` and `.json`.

    An item that the end of a cut tar takes apart is not one. Raises OSError if it cannot be read.
    """
    wanted = {f".{extension}"} if extension else set(EXTENSIONS)
    rows: list[list[int]] = []
    left_out = 0
    key, row = None, [-1] * _COLUMNS

    def close() -> None:
        nonlocal left_out
        if row[1] >= 0 and (row[3] >= 0 or row[5] >= 0):
            rows.append(row)
        elif key is not None and any(size >= 0 for size in row[1::2]):
            left_out += 1

    end, is_cut = 0, False
    size = os.stat(path).st_size
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            while (member := tar.next()) is not None:
                # Kept by tarfile otherwise, for each of millions.
                tar.members.clear()
                stop = member.offset_data + member.size
                if stop > size:
                    is_cut = True
                    break
                end = stop
                if not member.isfile():
                    continue
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(".")
                if not stem:
                    continue
                if (folder, stem) != key:
                    close()
                    key, row = (folder, stem), [-1] * _COLUMNS
                last = f".{suffix.lower()}"
                if last in wanted and row[1] < 0:
                    row[:2] = member.offset_data, member.size
                elif last == ".txt":
                    row[2:4] = member.offset_data, member.size
                elif last == ".json":
                    row[4:6] = member.offset_data, member.size
    except (tarfile.TarError, ValueError, EOFError):
        is_cut = True
    close()
    # A whole tar ends with two blocks of zeros; tarfile stops at a damaged header as at the end.
    is_cut = is_cut or not _ends_with_zeros(path, -(-end // 512) * 512)
    return Table(np.array(rows, np.int64).reshape(-1, _COLUMNS), left_out, is_cut)


def _ends_with_zeros(path: Path, offset: int) -> bool:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(1024) == bytes(1024)


def _read_json(data: bytes, key: str) -> dict:
    try:
        values = json.loads(data.decode("utf-8-sig", errors="replace"))
    except ValueError as error:
        raise BadItem(f"{key}: {error}", "damaged JSON") from error
    if not isinstance(values, dict):
        raise BadItem(f"{key}: the JSON is no object", "damaged JSON")
    return values
