"""Pictures as they are stored: encoded, with all captions; and how they become items.

Each storage format is a class with `__len__`, `record(index)` and `skipped`; what is wanted,
decoding and the held-out split are the same for all of them and lie here.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.images import decode_crop
from imagen_jax.data.source import BadItem, FilteredItem, Item

# Every twentieth item is held out, unless there are too few to spare any.
HELD_OUT_EVERY = 20
HELD_OUT_MINIMUM = 100


@dataclasses.dataclass(frozen=True)
class Record:
    """An encoded picture.

    Attributes:
      key: names it within its source.
      image: the bytes of a picture file.
      captions: of the picture, on one line each; empty ones are left out.
      score: the number that `min_score` is compared with, if there is one.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    score: float | None = None


class Records(Protocol):
    """Random access to encoded pictures, also from several threads and in other processes.

    Attributes:
      skipped: what was left out when the files were looked through (reason: number).
    """

    skipped: collections.Counter[str]

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """The record at `index` in [0, len). Raises BadItem."""
        ...

    @property
    def home(self) -> Path:
        """The folder that the files lie in."""
        ...

    def stamps(self) -> np.ndarray:
        """`[len]` uint64: for each record, what changes when its picture may have; see `stamp`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemFilter:
    """Which pictures and captions are wanted; 0 and None: any. See DataConfig."""

    min_side: float = 0.0
    max_aspect: float = 0.0
    min_caption_length: int = 0
    max_caption_length: int = 0
    min_score: float | None = None

    @classmethod
    def from_config(cls, config: DataConfig, has_score: bool) -> ItemFilter:
        """The filters of the config."""
        return cls(
            min_side=config.min_side,
            max_aspect=config.max_aspect,
            min_caption_length=config.min_caption_length,
            max_caption_length=config.max_caption_length,
            min_score=config.min_score if has_score else None,
        )

    def select_captions(self, record: Record) -> tuple[str, ...]:
        """The captions that pass. Raises FilteredItem for a picture without one."""
        if not record.captions:
            raise BadItem(f"{record.key} has no caption", "no caption")
        most = self.max_caption_length or float("inf")
        kept = tuple(c for c in record.captions if self.min_caption_length <= len(c) <= most)
        if not kept:
            short = all(len(c) < self.min_caption_length for c in record.captions)
            raise FilteredItem(record.key, "caption too short" if short else "caption too long")
        return kept

    def check_score(self, record: Record) -> None:
        """Raises FilteredItem for too low a score, or none."""
        # Written so that NaN, which compares with nothing, is left out.
        if self.min_score is not None and not (
            record.score is not None and record.score >= self.min_score
        ):
            has_none = record.score is None or record.score != record.score
            raise FilteredItem(record.key, "no score" if has_none else "score too low")

    def check_size(self, width: int, height: int, shape: tuple[int, int]) -> None:
        """Raises FilteredItem for a picture too small for `shape` (H, W), or too long."""
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

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int) -> Item:
        return self.item_of_shape(index, (self.image_size, self.image_size))

    def item_of_shape(self, index: int, shape: tuple[int, int]) -> Item:
        """The item at `index`, its picture cut to `shape` (H, W). Raises BadItem."""
        record = self.records.record(index)
        captions = self.item_filter.select_captions(record)
        self.item_filter.check_score(record)
        check_size = functools.partial(self.item_filter.check_size, shape=shape)
        try:
            image = decode_crop(record.image, *shape, check_size)
        except FilteredItem:
            raise
        except BadItem as error:
            raise BadItem(f"{record.key}: {error}", error.kind) from error
        return Item(image, captions[0], captions[1:])


@dataclasses.dataclass(frozen=True)
class SplitRecords:
    """One side of a set: every twentieth record is held out, of at least a hundred.

    By position, so that a set of any size is split at once, and one that grows at its end moves
    nothing across.
    """

    records: Records
    split: str

    @property
    def skipped(self) -> collections.Counter[str]:
        return self.records.skipped

    def __len__(self) -> int:
        whole = len(self.records)
        if whole < HELD_OUT_MINIMUM:
            return whole
        held_out = whole // HELD_OUT_EVERY
        return held_out if self.split == "held_out" else whole - held_out

    def record(self, index: int) -> Record:
        return self.records.record(self._place(index))

    @property
    def home(self) -> Path:
        return self.records.home

    def stamps(self) -> np.ndarray:
        return self.records.stamps()[self._place(np.arange(len(self)))]

    def _place(self, index: Any) -> Any:
        """Where items of this side lie in the whole: of one index, or an array of them."""
        if len(self.records) < HELD_OUT_MINIMUM:
            return index
        if self.split == "held_out":
            return index * HELD_OUT_EVERY + HELD_OUT_EVERY - 1
        return index + index // (HELD_OUT_EVERY - 1)
