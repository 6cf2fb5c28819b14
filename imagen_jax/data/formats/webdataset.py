"""Tar shards in the webdataset layout, such as img2dataset writes, read at random."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import (
    captions_of_files,
    decode_text,
    needs_json,
    parse_object,
    score_in_field,
)
from imagen_jax.data.formats.files import find_files, folder_of, read_range
from imagen_jax.data.formats.labels import check_first_labels, label_captions
from imagen_jax.data.formats.offsets import load_indices
from imagen_jax.data.formats.tar_index import COLUMNS, index_tar
from imagen_jax.data.images import plugins
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem

# Compressed tars are found in order to say that they are not read.
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


class TarRecords:
    """The items of tar shards, in the order of the shards' names.

    Each shard is scanned once for its items; what is found is stored, see `offsets`. The caption is
    the `.txt`. If there is none, or `caption_fields` names other fields, it comes from the JSON.
    A label is the `.cls`, or else a field of the JSON.

    Args:
      config: `path` is a folder with `.tar` files below it, or see `find_files`. `image_field`
        is the extension of the pictures (empty: the usual ones), `caption_fields` may hold "txt"
        and keys of the JSON.

    Attributes:
      folder: see `Records`.
      skipped: items without a picture or caption, shards that are cut short or unreadable.

    Raises:
      UserError: there are no shards.
    """

    def __init__(self, config: SourceConfig):
        paths = find_files(config.path, _SUFFIXES, "a folder of .tar shards, or a glob of them")
        extension = config.image_field.lstrip(".").lower()
        self.folder = folder_of(config.path)
        self._extension = extension
        self._config = config
        self._fields = config.caption_fields
        self._score_field = config.score_field
        self._shards = load_indices(
            paths,
            # What is a picture depends on the plugins that are installed.
            f"tar-{extension or f'any{plugins()}'}"
            + ("" if config.captions == "text" else f"-{config.captions}"),
            COLUMNS,
            lambda path: index_tar(path, extension, config.captions),
        )
        counts = {
            **self._shards.left_out,
            "shards are cut short or damaged; their whole items are used": self._shards.num_cut,
            "shards cannot be read": self._shards.unreadable,
        }
        self.skipped = collections.Counter({what: n for what, n in counts.items() if n})
        if config.captions == "labels":
            check_first_labels(config, self)

    def __len__(self) -> int:
        return len(self._shards)

    def parts(self) -> Iterator[tuple[str, int]]:
        return self._shards.parts(self.folder)

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
        text_data = b""
        if text_size >= 0 and self._config.captions != "none":
            text_data = read_range(shard.path, text, text_size)
        values = {}
        # Most sets do not need the JSON, which saves a read.
        if json_size >= 0 and self._needs_json(text_data):
            values = _parse_json(read_range(shard.path, json_offset, json_size), key)
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
        return captions_of_files(text, values, self._fields)

    def _needs_json(self, text: bytes) -> bool:
        """Whether the JSON of an item is needed beside what its `.txt` or `.cls` holds."""
        match self._config.captions:
            case "text":
                return needs_json(text, self._fields, self._score_field)
            case "labels":
                return bool(self._score_field or self._config.label_field or not text)
        return bool(self._score_field)


def _parse_json(data: bytes, key: str) -> dict:
    try:
        return parse_object(decode_text(data))
    except ValueError as error:
        raise BadItem(f"{key}: {error}", "damaged JSON") from error
