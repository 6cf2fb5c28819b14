"""Writes small icon sets, as the packages of npm lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CIRCLE = '<circle cx="8" cy="8" r="6" fill="red"/>'
LICENSE = {"title": "Apache 2.0", "spdx": "Apache-2.0", "url": "https://example.com/license"}


def iconify(prefix: str, icons: dict[str, Any], **others: Any) -> dict[str, Any]:
    """An IconifyJSON object; an icon may be given by its body alone."""
    bodies = {n: {"body": icon} if isinstance(icon, str) else icon for n, icon in icons.items()}
    return {"prefix": prefix, "icons": bodies, **others}


def write_package(
    folder: Path,
    prefix: str,
    icons: dict[str, Any],
    *,
    info: dict[str, Any] | None = None,
    categories: dict[str, list[str]] | None = None,
    chars: dict[str, str] | None = None,
    **others: Any,
) -> Path:
    """An `@iconify-json/*` package in a folder, which is returned."""
    folder.mkdir(parents=True)
    standard = {
        "prefix": prefix,
        "name": prefix.title(),
        "author": {"name": "A. Designer", "url": "https://example.com"},
        "license": LICENSE,
        "category": "Emoji",
    }
    files = {
        "icons.json": iconify(prefix, icons, **others),
        "info.json": standard if info is None else info,
        "metadata.json": {"categories": categories or {}},
        "chars.json": chars or {},
        "package.json": {"name": f"@iconify-json/{prefix}", "version": "1.2.3"},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder


def body(number: int) -> str:
    """A drawing that differs for each number."""
    return f'<rect x="{number // 144}" width="{2 + number % 12}" height="{2 + number // 12 % 12}"/>'


def write_styles(root: Path, concepts: dict[str, list[str]]) -> Path:
    """A folder of packages, given the concepts of each style."""
    for number, (style, names) in enumerate(concepts.items()):
        write_package(
            root / style,
            style,
            {name.replace(" ", "-"): body(i) + body(number) for i, name in enumerate(names)},
        )
    return root
