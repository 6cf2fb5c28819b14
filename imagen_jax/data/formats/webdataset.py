"""Tar shards in the webdataset layout, such as img2dataset writes, read at random.

The files of one item are adjacent and have the same name up to the first dot: `000000012.jpg`,
`000000012.txt`, `000000012.json`.
"""

from __future__ import annotations

import collections
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import captions_in_fields, clean_caption, score_in_field
from imagen_jax.data.formats.files import (
    EXTENSIONS,
    composed,
    find_files,
    folder_of,
    read_range,
)
from imagen_jax.data.formats.labels import check_first_labels, label_captions
from imagen_jax.data.formats.offsets import Table, load_indices
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem

# Offset and size of the picture, of the .txt and of the .json. Size -1: the item has no such file.
_COLUMNS = 6


class TarRecords:
    """The items of tar shards, in the order of the shards' names.

    Each shard is scanned once for its items; what is found is stored, see `offsets`. The caption is
    the `.txt`. If there is none, or `caption_fields` names other fields, it comes from the JSON.
    A label is the `.cls`, or else a field of the JSON.

    Args:
      config: `path` is a folder with `.tar` files below it, or a glob of them. `image_field` is
        the extension of the pictures (empty: any), `caption_fields` may hold "txt" and keys of the
        JSON.

    Attributes:
      folder: see `Records`.
      skipped: items without a picture or caption, shards that are cut short or unreadable.

    Raises:
      UserError: there are no shards.
    """

    def __init__(self, config: SourceConfig):
        paths = find_files(config.path, ".tar", "a folder of .tar shards, or a glob of them")
        extension = config.image_field.lstrip(".").lower()
        self.folder = folder_of(config.path)
        self._extension = extension
        self._config = config
        self._fields = config.caption_fields
        self._score_field = config.score_field
        self._shards = load_indices(
            paths,
            f"tar-{extension or 'any'}"
            + ("" if config.captions == "text" else f"-{config.captions}"),
            _COLUMNS,
            lambda path: index_tar(path, extension, config.captions),
        )
        left_out = sum(index.left_out for index in self._shards.indices)
        counts = {
            "items without a picture or without a caption": left_out,
            "shards are cut short or damaged; their whole items are used": self._shards.num_cut,
            "shards cannot be read": self._shards.unreadable,
        }
        self.skipped = collections.Counter({what: n for what, n in counts.items() if n})
        if config.captions == "labels":
            check_first_labels(config, self)

    def __len__(self) -> int:
        return len(self._shards)

    def stamps(self) -> np.ndarray:
        return self._shards.stamps(self.folder, self._extension)

    def head(self, index: int, size: int) -> bytes:
        shard, row = self._shards.locate(index)
        offset, whole, *_ = shard.row(row)
        return read_range(shard.path, offset, min(size, whole))

    def record(self, index: int) -> Record:
        shard, row = self._shards.locate(index)
        image, image_size, text, text_size, json_offset, json_size = shard.row(row)
        key = f"{shard.path.name}[{row}]"
        values = {}
        # Most sets do not need the JSON, which saves a read.
        if json_size >= 0 and (
            self._score_field
            or (text_size < 0 and self._config.captions != "none")
            or self._config.label_field
            or any(f != "txt" for f in self._fields)
        ):
            values = _parse_json(read_range(shard.path, json_offset, json_size), key)
        text_data = b""
        if text_size >= 0 and self._config.captions != "none":
            text_data = read_range(shard.path, text, text_size)
        return Record(
            key=key,
            image=read_range(shard.path, image, image_size),
            captions=self._captions(text_data, values),
            score=score_in_field(values, self._score_field),
        )

    def _captions(self, text: bytes, values: dict) -> tuple[str, ...]:
        """The captions in the `.txt` (or `.cls`) and the JSON of an item."""
        if self._config.captions == "none":
            return ("",)
        if self._config.captions == "labels":
            found = values if not text or self._config.label_field else {"cls": text}
            return tuple(label_captions(found, self._config, self._config.label_names))
        captions: tuple[str, ...] = ()
        if text and (not self._fields or "txt" in self._fields):
            caption = clean_caption(text)
            captions = (caption,) if caption else ()
        if self._fields or not captions:
            names = tuple(field for field in self._fields if field != "txt")
            if names or not self._fields:
                captions += captions_in_fields(values, names)
        return captions


def index_tar(path: Path, extension: str = "", captions: str = "text") -> Table:
    """Scans one tar: `[N, 6]`, offset and size of picture, `.txt` and `.json` of each item.

    For labels, the `.cls` takes the place of the `.txt`. If the tar is cut short, an item that is
    not whole is left out. Raises OSError if the file cannot be read.
    """
    extensions = {f".{extension}"} if extension else set(EXTENSIONS)
    text_suffix = ".cls" if captions == "labels" else ".txt"
    rows: list[list[int]] = []
    left_out = 0
    key, row = None, [-1] * _COLUMNS

    def close() -> None:
        """Adds the item whose files were read."""
        nonlocal left_out
        if row[1] >= 0 and (row[3] >= 0 or row[5] >= 0 or captions == "none"):
            rows.append(row)
        elif key is not None and any(size >= 0 for size in row[1::2]):
            left_out += 1

    end, is_cut = 0, False
    size = os.stat(path).st_size
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            while (member := tar.next()) is not None:
                # tarfile would keep all members, millions of them, in memory.
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
                if (folder, composed(stem)) != key:
                    close()
                    key, row = (folder, composed(stem)), [-1] * _COLUMNS
                suffix = f".{suffix.lower()}"
                if suffix in extensions and row[1] < 0:
                    row[:2] = member.offset_data, member.size
                elif suffix == text_suffix:
                    row[2:4] = member.offset_data, member.size
                elif suffix == ".json":
                    row[4:6] = member.offset_data, member.size
    except (tarfile.TarError, ValueError, EOFError):
        is_cut = True
    close()
    # tarfile stops at a damaged header as at the end, but a whole tar ends with 1024 zero bytes.
    is_cut = is_cut or not _ends_with_zeros(path, -(-end // 512) * 512)
    return Table(np.array(rows, np.int64).reshape(-1, _COLUMNS), left_out, is_cut)


def _ends_with_zeros(path: Path, offset: int) -> bool:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(1024) == bytes(1024)


def _parse_json(data: bytes, key: str) -> dict:
    try:
        values = json.loads(data.decode("utf-8-sig", errors="replace"))
    except ValueError as error:
        raise BadItem(f"{key}: {error}", "damaged JSON") from error
    if not isinstance(values, dict):
        raise BadItem(f"{key}: the JSON is not an object", "damaged JSON")
    return values
