"""Pictures as they are stored: encoded, with all captions; and how they become items.

Each storage format is a class with `__len__`, `record(index)` and `skipped`; what is wanted,
decoding and the held-out split are the same for all of them and lie here.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import glob
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagen_jax.config import DataConfig, SourceConfig
from imagen_jax.data.images import decode_crop
from imagen_jax.data.source import BadItem, FilteredItem, Item, unknown_source
from imagen_jax.errors import UserError

# Every twentieth item is held out, unless there are too few to spare any.
HELD_OUT_EVERY = 20
HELD_OUT_MINIMUM = 100
# Where captions and pictures are looked for if the config names no field.
CAPTION_FIELDS = ("caption", "captions", "captions/text", "text", "TEXT", "sentences")
IMAGE_FIELDS = ("image", "jpg", "png", "webp", "img", "image_bytes", "bytes")

logger = logging.getLogger(__name__)


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

    Some sets also have these attributes:
      num_held_out: the set has a split of its own: this many records at its end are held out, and
        if it is 0, both sides are the whole set. None is as if it were missing.
      provenance: where the pictures come from (authors, licences), as plain JSON values.
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
class Wanted:
    """Which pictures and captions are wanted; 0 and None: any. See DataConfig."""

    min_side: float = 0.0
    max_aspect: float = 0.0
    min_caption_length: int = 0
    max_caption_length: int = 0
    min_score: float | None = None

    @classmethod
    def of(cls, config: DataConfig, has_score: bool) -> Wanted:
        """The filters of the config."""
        return cls(
            min_side=config.min_side,
            max_aspect=config.max_aspect,
            min_caption_length=config.min_caption_length,
            max_caption_length=config.max_caption_length,
            min_score=config.min_score if has_score else None,
        )

    def captions(self, record: Record) -> tuple[str, ...]:
        """The captions that are wanted. Raises FilteredItem for a picture without one."""
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
    wanted: Wanted = Wanted()
    endless: bool = dataclasses.field(default=False, init=False)

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int) -> Item:
        return self.item_of_shape(index, (self.image_size, self.image_size))

    def item_of_shape(self, index: int, shape: tuple[int, int]) -> Item:
        """The item at `index`, its picture cut to `shape` (H, W). Raises BadItem."""
        record = self.records.record(index)
        captions = self.wanted.captions(record)
        self.wanted.check_score(record)
        check_size = functools.partial(self.wanted.check_size, shape=shape)
        try:
            image = decode_crop(record.image, *shape, check_size)
        except FilteredItem:
            raise
        except BadItem as error:
            raise BadItem(f"{record.key}: {error}", error.kind) from error
        return Item(image, captions[0], captions[1:])


@dataclasses.dataclass(frozen=True)
class SplitRecords:
    """One side of a set: that of its own split (see Records), or else every twentieth is held out.

    By position, so that a set of any size is split at once, and one that grows at its end moves
    nothing across. A set of less than a hundred is too small to be split.
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
        return self.records.record(self._place(index))

    @property
    def home(self) -> Path:
        return self.records.home

    def stamps(self) -> np.ndarray:
        return self.records.stamps()[self._place(np.arange(len(self)))]

    @property
    def _own_held_out(self) -> int | None:
        """How many records the set itself holds out, None if it has no split."""
        return getattr(self.records, "num_held_out", None)

    def _num_held_out(self) -> int:
        if self._own_held_out is not None:
            return self._own_held_out
        whole = len(self.records)
        return whole // HELD_OUT_EVERY if whole >= HELD_OUT_MINIMUM else 0

    def _place(self, index: Any) -> Any:
        """Where items of this side lie in the whole: of one index, or an array of them."""
        held_out = self._num_held_out()
        if not held_out:
            return index
        if self._own_held_out is not None:
            return index + (len(self.records) - held_out if self.split == "held_out" else 0)
        if self.split == "held_out":
            return index * HELD_OUT_EVERY + HELD_OUT_EVERY - 1
        return index + index // (HELD_OUT_EVERY - 1)


def load_records(config: SourceConfig, split: str | None) -> Records:
    """The records of a stored set.

    Args:
      config: names the format, the path and the fields.
      split: "train", "held_out", or None for all.

    Raises:
      UserError: the files are not there, or have no pictures with captions; a library is missing.
    """
    if config.source == "folder":
        from imagen_jax.data.formats.folder import FolderRecords

        return FolderRecords(config.path, split)
    if config.source == "webdataset":
        from imagen_jax.data.formats.webdataset import TarRecords

        records: Records = TarRecords(config)
    elif config.source == "parquet":
        from imagen_jax.data.formats.parquet import ParquetRecords

        records = ParquetRecords(config)
    elif config.source == "arrow":
        from imagen_jax.data.formats.arrow import ArrowRecords

        records = ArrowRecords(config)
    elif config.source == "tfds":
        from imagen_jax.data.formats.tfds import TfdsRecords

        records = TfdsRecords(config)
    elif config.source == "array_record":
        from imagen_jax.data.formats.array_record import PreparedRecords

        records = PreparedRecords(config.path)
    else:
        raise unknown_source(config.source)
    if not len(records):
        reasons = ", ".join(f"{n} {reason}" for reason, n in records.skipped.items())
        raise UserError(
            f"config.data.path={config.path} has no picture with a caption"
            f" ({reasons or 'no items at all'}); see docs/data.md for what "
            f"source={config.source!r} looks for, and check_data to look at it"
        )
    for reason, number in records.skipped.items():
        logger.warning("%s: %d skipped: %s", config.path, number, reason)
    return records if split is None else SplitRecords(records, split)


# --- what the formats share -------------------------------------------------------------------


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


def clean_caption(value: str | bytes) -> str:
    """The caption on one line; what is not UTF-8 becomes U+FFFD."""
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig", errors="replace")
    return " ".join(value.split())


def captions_in(value: Any) -> list[str]:
    """All captions in a string, bytes, a list of them, or dicts with a `text`, `raw` or `caption`.

    What has none gives an empty list.
    """
    if isinstance(value, (str, bytes)):
        caption = clean_caption(value)
        return [caption] if caption else []
    if isinstance(value, np.ndarray):
        value = value.tolist()
        return captions_in(value) if isinstance(value, (str, bytes, list)) else []
    if isinstance(value, Mapping):
        names = [name for name in ("text", "raw", "caption") if name in value]
        return captions_in(value[names[0]]) if names else []
    if isinstance(value, Iterable):
        return [caption for part in value for caption in captions_in(part)]
    return []


def captions_of(values: Mapping[str, Any], fields: tuple[str, ...]) -> tuple[str, ...]:
    """The captions in the named fields, or in the first of the usual ones that has any."""
    if fields:
        return tuple(c for field in fields for c in captions_in(_nested(values, field)))
    for field in CAPTION_FIELDS:
        if found := captions_in(_nested(values, field)):
            return tuple(found)
    return ()


def score_of(values: Mapping[str, Any], field: str) -> float | None:
    """The number in `field`, None where there is none."""
    value = _nested(values, field) if field else None
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _nested(values: Any, field: str) -> Any:
    """`values["a"]["b"]` of "a/b", None where it does not lead anywhere."""
    for name in field.split("/"):
        if not isinstance(values, Mapping) or name not in values:
            return None
        values = values[name]
    return values


def choose_image_field(config: SourceConfig, available: Iterable[str]) -> str:
    """The column of the pictures. Raises UserError if there is none."""
    available = list(available)
    candidates = [config.image_field] if config.image_field else IMAGE_FIELDS
    for name in candidates:
        if name in available:
            return name
    raise UserError(
        f"config.data.path={config.path} has no column {' or '.join(candidates)}; it has "
        f"{', '.join(available)} (set config.data.image_field)"
    )
