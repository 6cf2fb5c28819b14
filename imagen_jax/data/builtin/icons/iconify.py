"""Reads IconifyJSON, the format of the icon sets of iconify.design."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any

from imagen_jax.data.builtin.icons.emoji_names import parse_code_points
from imagen_jax.data.builtin.icons.icon_set import Drawing, Icon, IconSet
from imagen_jax.data.builtin.icons.package import (
    MANIFEST,
    as_object,
    as_text,
    origin_of,
    read_json,
    read_object,
)
from imagen_jax.errors import UserError

ICONS = "icons.json"
# Beside `icons.json` in a package: licence, categories, code points. A single file has all of them.
_INFO, _METADATA, _CHARS = "info.json", "metadata.json", "chars.json"
# Sides of the view box where the file gives none: the format's default.
_SIDE = 16
_PLACEMENT = ("left", "top", "width", "height", "rotate", "hFlip", "vFlip")


def read_iconify(path: Path) -> IconSet:
    """Reads a set.

    Left out, and counted by kind: hidden icons (which the set no longer shows), icons without a
    body, and icons whose view box has no size. An alias that only renames an icon is another name
    of it; one that turns, flips or cuts it is an icon of its own.

    Args:
      path: an IconifyJSON file, or a folder with `icons.json`.

    Raises:
      UserError: a file is not JSON, or not IconifyJSON; an alias leads to no icon.
    """
    folder = path if path.is_dir() else None
    file = folder / ICONS if folder else path
    values = read_json(file)
    if not (
        isinstance(values, dict)
        and as_text(values.get("prefix"))
        and isinstance(values.get("icons"), dict)
    ):
        raise UserError(
            f"{file} is not IconifyJSON: it needs a text `prefix` and an object `icons`; take it "
            "out of config.data.path"
        )
    besides: tuple[Path, ...] = ()
    package: dict[str, Any] = {}
    if folder:
        besides = tuple(folder / name for name in (_INFO, _METADATA, _CHARS, MANIFEST))
        info, metadata, chars, package = map(read_object, besides)
        values = values | metadata
        values["info"] = info or values.get("info")
        values["chars"] = chars or values.get("chars")
    info = as_object(values.get("info"))
    skipped: collections.Counter[str] = collections.Counter()
    return IconSet(
        name=values["prefix"],
        icons=_read_icons(file, values, skipped),
        is_emoji=info.get("category") == "Emoji",
        origin=origin_of(package, info),
        files=(file, *(other for other in besides if other.is_file())),
        skipped=skipped,
    )


def _read_icons(
    file: Path, values: dict[str, Any], skipped: collections.Counter[str]
) -> tuple[Icon, ...]:
    icons, aliases = as_object(values["icons"]), as_object(values.get("aliases"))
    defaults = {"width": _SIDE, "height": _SIDE} | {
        name: values[name] for name in ("left", "top", "width", "height") if name in values
    }
    drawings: dict[str, Drawing] = {}
    other_names: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(icons.keys() | aliases.keys()):
        shown, merged = _merge(file, icons, aliases, name)
        if shown != name:
            other_names[shown].append(name)
        elif merged.get("hidden"):
            skipped["hidden icons"] += 1
        elif not as_text(merged.get("body")).strip():
            skipped["icons without a body"] += 1
        elif drawing := _drawing(defaults | merged):
            drawings[name] = drawing
        else:
            skipped["icons whose view box has no size"] += 1
    sequences = {
        as_text(name): sequence
        for code, name in as_object(values.get("chars")).items()
        if (sequence := parse_code_points(code))
    }
    categories = {
        as_text(name): category
        for category, names in as_object(values.get("categories")).items()
        if isinstance(names, list)
        for name in names
    }
    return tuple(
        Icon(
            name=name,
            picture=drawing,
            other_names=tuple(other_names[name]),
            sequence=sequences.get(name, ""),
            category=categories.get(name, ""),
        )
        for name, drawing in drawings.items()
    )


def _merge(
    file: Path, icons: dict[str, Any], aliases: dict[str, Any], name: str
) -> tuple[str, dict[str, Any]]:
    """The properties of an icon or alias, those of an alias joined to its parent's.

    Returns:
      The name under which the picture is shown (that of the parent if an alias only renames it),
      and the properties.
    """
    chain = [name]
    while chain[-1] not in icons:
        parent = as_object(aliases.get(chain[-1])).get("parent")
        known = isinstance(parent, str) and (parent in icons or parent in aliases)
        if not known or parent in chain:
            raise UserError(
                f"{file}: the parent of the alias {chain[-1]!r} is {parent!r}, which is no icon of "
                "the set; mend the file or download it again"
            )
        chain.append(parent)
    shown, merged = chain[-1], dict(as_object(icons[chain[-1]]))
    for alias in reversed(chain[:-1]):
        changes = as_object(aliases[alias])
        if any(key in changes for key in _PLACEMENT):
            shown = alias
        turned = {
            "rotate": _number(merged.get("rotate")) + _number(changes.get("rotate")),
            "hFlip": bool(merged.get("hFlip")) != bool(changes.get("hFlip")),
            "vFlip": bool(merged.get("vFlip")) != bool(changes.get("vFlip")),
        }
        merged = merged | changes | turned
    return shown, merged


def _drawing(values: dict[str, Any]) -> Drawing | None:
    """The drawing with these properties, None if its view box has no size."""
    left, top, width, height = (
        _number(values.get(name)) for name in ("left", "top", "width", "height")
    )
    if not (width > 0 and height > 0):
        return None
    return Drawing(
        body=values["body"],
        left=left,
        top=top,
        width=width,
        height=height,
        quarter_turns=int(_number(values.get("rotate"))) % 4,
        flip_horizontal=bool(values.get("hFlip")),
        flip_vertical=bool(values.get("vFlip")),
    )


def _number(value: Any) -> float:
    """A JSON value if it is a finite number, else 0."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0
