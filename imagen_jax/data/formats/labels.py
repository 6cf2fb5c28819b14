"""Class labels as captions: the words for the numbers of a label column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import clean_caption, nested
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

# Where labels are looked for if the config names no field.
LABEL_FIELDS = (
    "label",
    "labels",
    "label_name",
    "class_name",
    "class",
    "cls",
    "category",
    "fine_label",
)


def choose_label_field(config: SourceConfig, available: Iterable[str]) -> str:
    """The field of the labels. Raises UserError if there is none."""
    available = list(available)
    candidates = (config.label_field,) if config.label_field else LABEL_FIELDS
    for name in candidates:
        if name.split("/")[0] in available:
            return name
    raise UserError(
        f"config.data.path={config.path} has no column {' or '.join(candidates)} of labels; it has "
        f"{', '.join(available)} (set config.data.label_field)"
    )


def label_captions(values: Mapping[str, Any], config: SourceConfig, names: Sequence[str]) -> list:
    """The label in the first field of the config, or of the usual ones, that has one."""
    for field in (config.label_field,) if config.label_field else LABEL_FIELDS:
        if words := label_words(nested(values, field), names):
            return [words]
    return []


def check_first_labels(config: SourceConfig, records: Any) -> None:
    """Raises UserError if none of the first records has a label in words."""
    found = [caption for i in range(min(len(records), 10)) for caption in _captions(records, i)]
    if not any(not caption.replace(", ", "").isdecimal() for caption in found):
        raise UserError(
            f"config.data.path={config.path}: the first items have no label in words "
            f"({', '.join(found) or 'none at all'}); set config.data.label_field to its key, and "
            "config.data.label_names to the names of the classes if they are numbers"
        )


def _captions(records: Any, index: int) -> tuple[str, ...]:
    try:
        return records.record(index).captions
    except BadItem:
        return ()


def label_words(value: Any, names: Sequence[str]) -> str:
    """The words of a label, "" if there are none. Several labels are joined by commas.

    Args:
      value: a word, the number of a class, or a list of these. -1 means that there is no label.
      names: the words of each class by its number. A number beyond them has no words.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, (label_words(part, names) for part in value)))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return name_in_words(names[value]) if 0 <= value < len(names) else ""
    if isinstance(value, (str, bytes)):
        text = name_in_words(value)
        # `.cls` files hold the number as text.
        return label_words(int(text), names) if names and text.isdecimal() else text
    return ""


def name_in_words(name: str | bytes) -> str:
    """The name of a class as a caption: `golden_retriever` becomes "golden retriever"."""
    return clean_caption(clean_caption(name).replace("_", " "))


def hugging_face_names(metadata: Mapping[bytes, bytes] | None, field: str) -> tuple[str, ...]:
    """The names of a ClassLabel in the metadata of an Arrow schema; none if there are none."""
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        for name in field.split("/"):
            feature = _inner(feature)[name]
        return tuple(map(str, _inner(feature)["names"]))
    except (KeyError, ValueError, TypeError):
        return ()


def _inner(feature: Any) -> Any:
    """The feature of the items if it is a list of them."""
    while isinstance(feature, list) or (
        isinstance(feature, Mapping) and feature.get("_type") in ("Sequence", "List", "LargeList")
    ):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return feature
