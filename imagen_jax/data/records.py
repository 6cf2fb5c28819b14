"""Records: encoded pictures with all their captions, as they are stored, and their decoding.

Each storage format is a class with the methods of `Records`. Filters, decoding and the held-out
split are the same for all formats.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagen_jax.config import MAX_PIXELS, DataConfig
from imagen_jax.data.images import decode_crop
from imagen_jax.data.source import BadItem, FilteredItem, Item

# Every twentieth record is held out, unless the set is smaller than the minimum.
HELD_OUT_EVERY = 20
HELD_OUT_MINIMUM = 100
# In a caption: stands for bytes that are no character.
UNREADABLE = "\ufffd"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Record:
    """An encoded picture with its captions.

    Attributes:
      key: identifies the record within its source.
      image: the bytes of a picture file.
      captions: of the picture, each on one line; empty captions are left out. If the set is read
        without captions, the only one is empty.
      score: the number that `min_score` is compared with, None if there is none.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    score: float | None = None


class Records(Protocol):
    """Random access to encoded pictures, also from several threads and in other processes.

    Attributes:
      skipped: what was left out while the files were scanned (reason: number).

    Some sets also have these attributes:
      num_held_out: the set has a split of its own: this many records at its end are held out, and
        if it is 0, both splits are the whole set. None: it has no split of its own.
      provenance: where the pictures come from (authors, licences), as plain JSON values.
    """

    skipped: collections.Counter[str]

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """The record at `index` in [0, len). Raises BadItem if it cannot be read."""
        ...

    def head(self, index: int, size: int) -> bytes:
        """The first `size` bytes of a picture file; all of it where a format reads no less.

        Raises:
          BadItem: it cannot be read.
        """
        ...

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        ...

    def parts(self) -> Iterator[tuple[str, int]]:
        """For each file of the set, its name and size as a text, and its number of records.

        In the order of the records; also files of which no record can be read.
        """
        ...

    def stamps(self) -> np.ndarray:
        """`[len]` uint64, one stamp a record, which changes when the record's file changes."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemFilter:
    """Which pictures and captions are left out. 0 and None switch a filter off. See DataConfig.

    `max_pixels` cannot be switched off; pictures with more count as unreadable.
    """

    min_side: float = 0.0
    max_aspect: float = 0.0
    min_caption_length: int = 0
    max_caption_length: int = 0
    min_score: float | None = None
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, config: DataConfig, has_score: bool) -> ItemFilter:
        """The filters of the config; `min_score` applies only to sources with a score."""
        return cls(
            min_side=config.min_side,
            max_aspect=config.max_aspect,
            min_caption_length=config.min_caption_length,
            max_caption_length=config.max_caption_length,
            min_score=config.min_score if has_score else None,
            max_pixels=config.max_pixels,
        )

    def select_captions(self, record: Record) -> tuple[str, ...]:
        """The captions of an allowed length.

        Raises:
          BadItem: the record has no caption.
          FilteredItem: all captions are too short or too long.
        """
        if record.captions == ("",):
            return record.captions  # a set that is read without captions
        if not record.captions:
            raise BadItem(f"{record.key} has no caption", "no caption")
        maximum = self.max_caption_length or math.inf
        kept = tuple(c for c in record.captions if self.min_caption_length <= len(c) <= maximum)
        if not kept:
            short = all(len(c) < self.min_caption_length for c in record.captions)
            raise FilteredItem(record.key, "caption too short" if short else "caption too long")
        return kept

    def check_score(self, record: Record) -> None:
        """Raises FilteredItem if the score is too low, missing or NaN."""
        if self.min_score is None:
            return
        if record.score is None or math.isnan(record.score):
            raise FilteredItem(record.key, "no score")
        if record.score < self.min_score:
            raise FilteredItem(record.key, "score too low")

    def check_size(self, width: int, height: int, shape: tuple[int, int]) -> None:
        """Raises FilteredItem if a picture is too small for `shape` (H, W), or too elongated."""
        short, long = sorted((width, height))
        if height < self.min_side * shape[0] or width < self.min_side * shape[1]:
            raise FilteredItem(f"{width}x{height}", "picture too small")
        if self.max_aspect and long > self.max_aspect * short:
            raise FilteredItem(f"{width}x{height}", "picture too long or too wide")


@dataclasses.dataclass(frozen=True)
class DecodedRecords:
    """Records as the items of one image size: a Source."""

    records: Records
    image_size: int
    item_filter: ItemFilter = ItemFilter()
    endless: bool = dataclasses.field(default=False, init=False)
    # Whether a caption with unreadable characters was met; only the first is logged.
    _has_warned: list[str] = dataclasses.field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.records)

    def parts(self) -> Iterator[tuple[str, int]]:
        """See `Records`."""
        return self.records.parts()

    def _warn_of_unreadable(self, record: Record) -> None:
        unreadable = next((c for c in record.captions if UNREADABLE in c), None)
        if unreadable is None or self._has_warned:
            return
        self._has_warned.append(record.key)
        logger.warning(
            "%s: a caption of %s has characters that cannot be read (U+FFFD, also for NUL): %r; "
            "captions are read as UTF-8, or as UTF-16 with a byte order mark. check_data counts "
            "such captions; further ones are not logged",
            self.records.folder,
            record.key,
            unreadable[:80],
        )

    def item(self, index: int) -> Item:
        return self.item_of_shape(index, (self.image_size, self.image_size))

    def item_of_shape(
        self,
        index: int,
        shape: tuple[int, int],
        on_size: Callable[[int, int], None] | None = None,
    ) -> Item:
        """The item at `index`, with its picture cropped and resized to `shape` (H, W).

        Args:
          index: in [0, len).
          shape: of the picture.
          on_size: called with width and height of the stored picture before it is decoded.

        Raises:
          BadItem: the item cannot be read.
          FilteredItem: the filters leave it out.
        """
        record = self.records.record(index)
        captions = self.item_filter.select_captions(record)
        self.item_filter.check_score(record)
        self._warn_of_unreadable(record)

        def check_size(width: int, height: int) -> None:
            if on_size is not None:
                on_size(width, height)
            self.item_filter.check_size(width, height, shape)

        try:
            image = decode_crop(record.image, *shape, check_size, self.item_filter.max_pixels)
        except FilteredItem:
            raise
        except BadItem as error:
            raise BadItem(f"{record.key}: {error}", error.kind) from error
        return Item(image, captions[0], captions[1:])


@dataclasses.dataclass(frozen=True)
class SplitRecords:
    """One split of a set: the set's own (see `Records`), or else every twentieth is held out.

    The split goes by position: a set of any size is split at once, and records that are appended
    to a set move no other record to the other split. A set of less than a hundred is not split.
    """

    records: Records
    split: str

    @property
    def skipped(self) -> collections.Counter[str]:
        return self.records.skipped

    def __len__(self) -> int:
        whole, held_out = len(self.records), self._num_held_out()
        if not held_out:
            return whole
        return held_out if self.split == "held_out" else whole - held_out

    def record(self, index: int) -> Record:
        return self.records.record(self._index_in_set(index))

    def head(self, index: int, size: int) -> bytes:
        return self.records.head(self._index_in_set(index), size)

    @property
    def folder(self) -> Path:
        return self.records.folder

    def parts(self) -> Iterator[tuple[str, int]]:
        # Of the whole set: the split follows from it.
        return self.records.parts()

    def stamps(self) -> np.ndarray:
        return self.records.stamps()[self._index_in_set(np.arange(len(self)))]

    @property
    def _own_held_out(self) -> int | None:
        """How many records the set itself holds out, None if it has no split."""
        return getattr(self.records, "num_held_out", None)

    def _num_held_out(self) -> int:
        if self._own_held_out is not None:
            return self._own_held_out
        whole = len(self.records)
        return whole // HELD_OUT_EVERY if whole >= HELD_OUT_MINIMUM else 0

    def _index_in_set(self, index: Any) -> Any:
        """The index in the whole set for an index of this split, or for an array of them."""
        held_out = self._num_held_out()
        if not held_out:
            return index
        if self._own_held_out is not None:
            return index + (len(self.records) - held_out if self.split == "held_out" else 0)
        if self.split == "held_out":
            return index * HELD_OUT_EVERY + HELD_OUT_EVERY - 1
        return index + index // (HELD_OUT_EVERY - 1)
