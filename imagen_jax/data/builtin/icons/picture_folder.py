"""Reads a folder of pictures whose file names say what they show."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.data.builtin.icons.emoji_names import is_emoji, parse_code_points
from imagen_jax.data.builtin.icons.icon_set import Icon, IconSet
from imagen_jax.data.builtin.icons.package import MANIFEST, as_text, origin_of, read_object
from imagen_jax.data.formats.files import is_hidden, walk
from imagen_jax.data.images import picture_endings


def has_pictures(folder: Path, *, below: bool) -> bool:
    """Whether there is a picture in the folder, or anywhere below it."""
    return any(below or file.parent == folder for file in _pictures(folder))


def read_picture_folder(folder: Path) -> IconSet:
    """Reads a set.

    A file is named by what it shows ("red-apple.png") or by the code points of an emoji in
    hexadecimal ("1f34e.webp", "1f1eb-1f1f7.webp"). Pictures in folders below are found too. The
    licence is that of the package.json in the folder, if there is one.

    Args:
      folder: it has pictures, see `has_pictures`.

    Raises:
      UserError: the package.json cannot be read.
    """
    package = read_object(folder / MANIFEST)
    # A package of a scope is "@scope/name".
    name = as_text(package.get("name")).split("/")[-1] or folder.name
    icons: dict[str, Icon] = {}
    skipped: collections.Counter[str] = collections.Counter()
    for file in sorted(_pictures(folder)):
        # Names of files need not be Unicode; what is made of them must be.
        shown = os.fsencode(file.stem).decode(errors="replace")
        if shown in icons:
            skipped["pictures of one name"] += 1
            continue
        sequence = parse_code_points(shown)
        # "face" and "b2b" are words, although they are hexadecimal.
        is_word = not is_emoji(sequence) and (shown.isalpha() or len(shown) < 4)
        icons[shown] = Icon(shown, file, sequence="" if is_word else sequence)
    return IconSet(
        name=name,
        icons=tuple(icons.values()),
        is_emoji=False,
        origin=origin_of(package, {}),
        files=tuple(icon.picture for icon in icons.values()),
        skipped=skipped,
    )


def _pictures(folder: Path) -> Iterator[Path]:
    for directory, names, hidden in walk(folder):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if not hidden and ending in picture_endings() and not is_hidden(name):
                yield directory / name
