"""Fields of a stored record: which of them hold the picture, the captions and the score."""

from __future__ import annotations

import json
import re
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

_NO_CHARACTERS = re.compile("[\0\ud800-\udfff]")


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
    try:
        if fields:
            return tuple(c for field in fields for c in captions_in_value(nested(values, field)))
        for field in CAPTION_FIELDS:
            if found := captions_in_value(nested(values, field)):
                return tuple(found)
    except RecursionError:  # nothing that a program writes
        pass
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


def captions_of_files(
    text: bytes, values: Mapping[str, Any], fields: tuple[str, ...]
) -> tuple[str, ...]:
    """The captions in the files beside a picture.

    Args:
      text: what the `.txt` holds.
      values: what the JSON holds.
      fields: keys of the JSON, and "txt". Without names, the caption is the text; if that is empty,
        the captions are those in the usual fields of the JSON.
    """
    caption = clean_caption(text) if not fields or "txt" in fields else ""
    names = tuple(field for field in fields if field != "txt")
    found = captions_in_fields(values, names) if names or not (fields or caption) else ()
    return (caption, *found) if caption else found


def needs_json(text: bytes, fields: tuple[str, ...], score_field: str) -> bool:
    """Whether captions or score may be in the JSON; see `captions_of_files`."""
    if score_field or any(field != "txt" for field in fields):
        return True
    return not fields and not clean_caption(text)


def clean_caption(value: str | bytes) -> str:
    """The caption on one line. What is no character becomes U+FFFD: NULs, halves of surrogates."""
    if isinstance(value, bytes):
        value = decode_text(value)
    return " ".join(_NO_CHARACTERS.sub("\ufffd", value).split())


def decode_text(data: bytes) -> str:
    """Text in UTF-8; in UTF-16 or UTF-32 with a byte order mark or ASCII at its start.

    Bytes that stand for no character become U+FFFD.
    """
    return data.decode(encoding_of(data[:4]), errors="replace")


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first four bytes, by the rules for JSON (RFC 4627)."""
    return json.detect_encoding(head)


def parse_object(text: str) -> dict[str, Any]:
    """The object in a JSON text. Raises ValueError if there is none."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("the JSON is not an object")
    return values


def score_in_field(values: Mapping[str, Any], field: str) -> float | None:
    """The number in `field`, None if there is none."""
    value = nested(values, field) if field else None
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def nested(values: Any, field: str) -> Any:
    """`values["a"]["b"]` for the field "a/b", None if a key is missing."""
    for name in field.split("/"):
        if not isinstance(values, Mapping) or name not in values:
            return None
        values = values[name]
    return values
