"""Opens the source that a configuration names. A new format needs one line in `_FORMATS`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from imagen_jax.config import SOURCES, DataConfig, SourceConfig
from imagen_jax.data.builtin.emoji import EmojiSource
from imagen_jax.data.builtin.icons.records import IconRecords
from imagen_jax.data.builtin.shapes.source import ShapesSource
from imagen_jax.data.formats.array_record import PreparedRecords
from imagen_jax.data.formats.arrow import ArrowRecords
from imagen_jax.data.formats.folder import FolderRecords
from imagen_jax.data.formats.parquet import ParquetRecords
from imagen_jax.data.formats.tfds import TfdsRecords
from imagen_jax.data.formats.webdataset import TarRecords
from imagen_jax.data.mixing import MixedSource
from imagen_jax.data.records import DecodedRecords, ItemFilter, Records, SplitRecords
from imagen_jax.data.source import SPLITS, Source
from imagen_jax.errors import UserError

# Stored formats by their name in the config. "folder" is not among them, since it makes its own
# split.
_FORMATS: dict[str, Callable[[SourceConfig], Records]] = {
    "webdataset": TarRecords,
    "parquet": ParquetRecords,
    "arrow": ArrowRecords,
    "tfds": TfdsRecords,
    "array_record": PreparedRecords,
}

# The settings of fields and splits that each source reads. A setting that does nothing is refused.
_FIELDS = ("split", "image_field", "caption_fields", "score_field")
_READ_BY = {
    "folder": ("caption_fields", "score_field"),
    "webdataset": ("image_field", "caption_fields", "score_field"),
    "parquet": _FIELDS,
    "arrow": _FIELDS,
    "tfds": _FIELDS,
    "array_record": ("score_field",),
}

logger = logging.getLogger(__name__)


def load_source(config: DataConfig, split: str, image_size: int, caption_seed: int = 0) -> Source:
    """The source that the configuration names.

    Args:
      config: names the source and its path, and says which pictures to leave out.
      split: "train" or "held_out".
      image_size: side of the square pictures.
      caption_seed: which sequence of scenes and captions "shapes" draws.

    Raises:
      UserError: the source or split is unknown, or its files do not exist.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if image_size < 1:
        raise UserError(f"image size is {image_size}; it must be positive")
    check_settings_are_read(config)
    if config.source == "shapes":
        return ShapesSource(split, image_size, caption_seed)
    if config.source == "mix":
        parts = {n: _load_part(part, config, split, image_size) for n, part in config.mix.items()}
        # A small part may hold nothing out.
        parts = {name: part for name, part in parts.items() if len(part)}
        weights = tuple(config.mix[name].weight for name in parts)
        return MixedSource(tuple(parts.values()), weights)
    return _load_part(config, config, split, image_size)


def check_settings_are_read(config: DataConfig) -> None:
    """Raises UserError if a setting of fields, splits or scores does nothing with the source."""
    parts = {f"config.data.mix.{name}": part for name, part in config.mix.items()}
    for name, part in {"config.data": config, **parts}.items():
        for field in _FIELDS:
            value = getattr(part, field)
            default = getattr(SourceConfig, field)
            if value == default or field in _READ_BY.get(part.source, ()):
                continue
            remedy = "set it in its parts" if part.source == "mix" else f"set {field}={default!r}"
            raise UserError(
                f"{name}.{field}={value!r} does nothing with source={part.source!r}; {remedy}"
            )
    if config.min_score and not any(part.score_field for part in (config, *parts.values())):
        raise UserError(
            f"config.data.min_score={config.min_score} does nothing without score_field; set "
            "config.data.score_field to the column or JSON key of the scores"
        )


def _load_part(part: SourceConfig, config: DataConfig, split: str, image_size: int) -> Source:
    if part.source == "emoji":
        return EmojiSource(part.path, split, image_size)
    item_filter = ItemFilter.from_config(config, has_score=bool(part.score_field))
    if part.source == "icons":
        icons = IconRecords(part.path, split, image_size)
        return DecodedRecords(icons, image_size, item_filter)
    return DecodedRecords(load_records(part, split), image_size, item_filter)


def load_records(config: SourceConfig, split: str | None) -> Records:
    """The records of a stored set. Logs what was left out while its files were scanned.

    Args:
      config: names the format, the path and the fields.
      split: "train", "held_out", or None for all records.

    Raises:
      UserError: the format is unknown, the files do not exist or hold no picture with a caption, or
        a library is not installed.
    """
    if config.source == "folder":
        records: Records = FolderRecords(config, split)
    elif config.source in _FORMATS:
        records = _FORMATS[config.source](config)
        _check_not_empty(config, records)
        records = records if split is None else SplitRecords(records, split)
    else:
        raise UserError(f"config.data.source is {config.source!r}; use one of {', '.join(SOURCES)}")
    for reason, number in records.skipped.items():
        logger.warning("%s: %d skipped: %s", config.path, number, reason)
    return records


def _check_not_empty(config: SourceConfig, records: Records) -> None:
    if not len(records):
        reasons = ", ".join(f"{n} {reason}" for reason, n in records.skipped.items())
        raise UserError(
            f"config.data.path={config.path} has no picture with a caption"
            f" ({reasons or 'no items at all'}); docs/data.md says what "
            f"source={config.source!r} looks for, and check_data shows what a set holds"
        )
