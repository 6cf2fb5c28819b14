"""Fields of a stored record: which of them hold the picture, the captions and the score."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.errors import UserError

# Where captions and pictures are looked for if the config names no field.
CAPTION_FIELDS = ("caption", "captions", "captions/text", "text", "TEXT", "sentences")
IMAGE_FIELDS = (
    "image",
    "jpg",
    "png",
    "webp",
    "img",
    "image_bytes",
    "bytes",
    # Paths of picture files.
    "image_path",
    "file_name",
)


def find_image_field(config: SourceConfig, available: Collection[str]) -> str:
    """The field of the pictures, "" if there is none."""
    candidates = (config.image_field,) if config.image_field else IMAGE_FIELDS
    return next((name for name in candidates if name in available), "")


def choose_image_field(config: SourceConfig, available: Iterable[str]) -> str:
    """The field of the pictures. Raises UserError if there is none."""
    available = list(available)
    if name := find_image_field(config, available):
        return name
    candidates = (config.image_field,) if config.image_field else IMAGE_FIELDS
    raise UserError(
        f"config.data.path={config.path} has no column {' or '.join(candidates)}; it has "
        f"{', '.join(available)} (set config.data.image_field)"
    )


def check_fields(config: SourceConfig, available: Iterable[str]) -> None:
    """Raises UserError if the columns of captions or of the score are missing."""
    available = list(available)
    wanted = [config.score_field] if config.score_field else []
    wanted += config.caption_fields if config.captions == "text" else ()
    for field in wanted:
        if field.split("/")[0] not in available:
            raise UserError(
                f"config.data.path={config.path} has no column {field.split('/')[0]}; it has "
                f"{', '.join(available)}"
            )
    if config.captions != "text" or config.caption_fields:
        return
    if not any(field.split("/")[0] in available for field in CAPTION_FIELDS):
        raise UserError(
            f"config.data.path={config.path} has no column of captions "
            f"({', '.join(CAPTION_FIELDS)}); it has {', '.join(available)}. Name the column in "
            "config.data.caption_fields, or set config.data.captions to 'labels' (the names of "
            "the classes) or 'none' (train without captions)"
        )


def captions_in_fields(values: Mapping[str, Any], fields: tuple[str, ...]) -> tuple[str, ...]:
    """The captions in the named fields; without names, those of the first usual field with any."""
    if fields:
        return tuple(c for field in fields for c in captions_in_value(nested(values, field)))
    for field in CAPTION_FIELDS:
        if found := captions_in_value(nested(values, field)):
            return tuple(found)
    return ()


def captions_in_value(value: Any) -> list[str]:
    """All captions in a value; an empty list if there are none.

    Args:
      value: text (a string or bytes), a mapping with a key `text`, `raw` or `caption`, or any
        iterable of these.
    """
    if isinstance(value, (str, bytes)):
        caption = clean_caption(value)
        return [caption] if caption else []
    if isinstance(value, np.ndarray):
        value = value.tolist()
        return captions_in_value(value) if isinstance(value, (str, bytes, list)) else []
    if isinstance(value, Mapping):
        names = [name for name in ("text", "raw", "caption") if name in value]
        return captions_in_value(value[names[0]]) if names else []
    if isinstance(value, Iterable):
        return [caption for part in value for caption in captions_in_value(part)]
    return []


def clean_caption(value: str | bytes) -> str:
    """The caption on one line; bytes that are not UTF-8 become U+FFFD."""
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig", errors="replace")
    return " ".join(value.split())


def score_in_field(values: Mapping[str, Any], field: str) -> float | None:
    """The number in `field`, None if there is none."""
    value = nested(values, field) if field else None
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def nested(values: Any, field: str) -> Any:
    """`values["a"]["b"]` for the field "a/b", None if a key is missing."""
    for name in field.split("/"):
        if not isinstance(values, Mapping) or name not in values:
            return None
        values = values[name]
    return values
