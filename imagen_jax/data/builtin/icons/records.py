"""Icons as records, drawn when they are asked for."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.builtin.icons.captions import icon_captions
from imagen_jax.data.builtin.icons.concepts import Concept, find_concepts
from imagen_jax.data.builtin.icons.find import load_sets
from imagen_jax.data.builtin.icons.groups import SEEN, find_groups
from imagen_jax.data.builtin.icons.icon_set import Drawing, Icon, IconSet
from imagen_jax.data.builtin.icons.key import IconKey
from imagen_jax.data.builtin.icons.naming import style_name
from imagen_jax.data.builtin.icons.render import check_renderer, render
from imagen_jax.data.formats.files import file_stamp, folder_of, name_and_size, record_stamps
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An icon that is a record; `files` are those that its picture was read from."""

    icon: Icon
    concept: Concept
    style: str
    files: tuple[Path, ...]


class IconRecords:
    """The icons of all sets below a path: a `Records`.

    Left out, beside what `read_iconify` and `read_picture_folder` leave out: skin-tone variants,
    unless they are asked for; icons named by code points of no known emoji; icons with the drawing
    of another icon of their set (of several, the one with the shortest concept stays).

    Args:
      path: see `find.load_sets`.
      split: "train" (the icons of the group `groups.SEEN`), "held_out" (all others) or None (both,
        the held-out ones last). If nothing is held out, as in a very small set, all are the same.
      size: side of the pictures.
      keep_skin_tones: whether variants with a skin tone are records too.

    Attributes:
      folder, skipped, num_held_out, provenance: see `Records`. The provenance is, for each style,
        the origin of its set (see `icon_set.Origin`).

    Raises:
      UserError: see `load_sets`; the renderer is not installed; two sets have one style.
    """

    def __init__(self, path: str, split: str | None, size: int, *, keep_skin_tones: bool = False):
        check_renderer()
        sets = _by_style(load_sets(path))
        self.folder = folder_of(path)
        self.skipped: collections.Counter[str] = collections.Counter()
        for icon_set in sets.values():
            self.skipped += icon_set.skipped
        self.provenance: dict[str, Any] = {
            style: dataclasses.asdict(icon_set.origin) for style, icon_set in sets.items()
        }
        entries = _without_repeats(self._find_entries(sets, keep_skin_tones), self.skipped)
        groups = find_groups([(e.concept.name, e.concept.family, e.style) for e in entries])
        pairs = list(zip(entries, groups, strict=True))
        seen = [pair for pair in pairs if pair[1] == SEEN]
        held_out = [pair for pair in pairs if pair[1] != SEEN]
        if split is None or not held_out:
            self._entries, self.num_held_out = seen + held_out, len(held_out)
        else:
            self._entries, self.num_held_out = held_out if split == "held_out" else seen, 0
        self._size = size

    def __len__(self) -> int:
        return len(self._entries)

    def concept(self, index: int) -> Concept:
        """What a record shows."""
        return self._entries[index][0].concept

    def key(self, index: int) -> IconKey:
        """The key of a record, without drawing it."""
        entry, group = self._entries[index]
        return IconKey(group, entry.style, entry.concept.name, entry.icon.name)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a record, without drawing it."""
        entry, _ = self._entries[index]
        return icon_captions(entry.concept.name, entry.style, entry.icon.category)

    def record(self, index: int) -> Record:
        key = str(self.key(index))
        try:
            image = render(self._entries[index][0].icon.picture, self._size)
        except BadItem as error:
            raise BadItem(f"{key}: {error}", error.kind) from error
        return Record(key, image, self.captions(index))

    def head(self, index: int, size: int) -> bytes:
        del size  # a picture is drawn as a whole
        return self.record(index).image

    def parts(self) -> Iterator[tuple[str, int]]:
        files = {file for entry, _ in self._entries for file in entry.files}
        sizes = {file: name_and_size(file, self.folder) for file in files}
        return (
            (" ".join((entry.icon.name, *(sizes[file] for file in entry.files))), 1)
            for entry, _ in self._entries
        )

    def stamps(self) -> np.ndarray:
        files = {file for entry, _ in self._entries for file in entry.files}
        stamps = {file: file_stamp(file, self.folder) for file in files}
        return record_stamps(
            (" ".join((entry.icon.name, *(stamps[file] for file in entry.files))), 1)
            for entry, _ in self._entries
        )

    def _find_entries(self, sets: dict[str, IconSet], keep_skin_tones: bool) -> list[_Entry]:
        entries = []
        found = zip(sets.items(), find_concepts(tuple(sets.values())), strict=True)
        for (style, icon_set), concepts in found:
            for icon, concept in zip(icon_set.icons, concepts, strict=True):
                if concept is None:
                    self.skipped["icons named by code points of no known emoji"] += 1
                elif concept.has_skin_tone and not keep_skin_tones:
                    self.skipped["skin-tone variants"] += 1
                else:
                    is_file = isinstance(icon.picture, Path)
                    files = (icon.picture,) if is_file else icon_set.files
                    entries.append(_Entry(icon, concept, style, files))
        return entries


def _by_style(sets: Sequence[IconSet]) -> dict[str, IconSet]:
    """The sets by their style, in order. Raises UserError if two have one style."""
    styles: dict[str, IconSet] = {}
    for icon_set in sets:
        style = style_name(icon_set.name)
        if style in styles:
            raise UserError(
                f"the icon sets {styles[style].name!r} and {icon_set.name!r} have one style, "
                f"{style!r}; take one out of config.data.path, or rename it"
            )
        if not icon_set.origin.license:
            logger.warning("the icon set %s (%s) names no licence", icon_set.name, style)
        styles[style] = icon_set
    return dict(sorted(styles.items()))


def _without_repeats(entries: list[_Entry], skipped: collections.Counter[str]) -> list[_Entry]:
    """One entry for each drawing of a set."""
    kept: dict[tuple[str, Drawing | Path], _Entry] = {}
    for entry in sorted(entries, key=lambda e: (len(e.concept.name), e.concept.name, e.icon.name)):
        place = (entry.style, entry.icon.picture)
        if place in kept:
            skipped["icons with the drawing of another"] += 1
        else:
            kept[place] = entry
    return sorted(kept.values(), key=lambda e: (e.style, e.concept.name, e.icon.name))
