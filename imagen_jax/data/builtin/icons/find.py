"""Finds and reads the icon sets below a path."""

from __future__ import annotations

from pathlib import Path

from imagen_jax.data.builtin.icons.icon_set import IconSet
from imagen_jax.data.builtin.icons.iconify import ICONS, read_iconify
from imagen_jax.data.builtin.icons.package import MANIFEST
from imagen_jax.data.builtin.icons.picture_folder import has_pictures, read_picture_folder
from imagen_jax.errors import UserError

_REMEDY = "set it to a folder of icon sets; `scripts/fetch_icons.sh DIR` downloads eight"


def load_sets(path: str) -> tuple[IconSet, ...]:
    """Reads all icon sets of `config.data.path`, ordered by name.

    Args:
      path: one set, or a folder of them. A set is a `.json` file of IconifyJSON, a folder with
        `icons.json` (an unpacked `@iconify-json/*` package of npm) or a folder of pictures. Folders
        whose name begins with "@" group sets, as npm lays out packages; other folders without icons
        are passed over, and so is what begins with ".".

    Raises:
      UserError: there is no such path or no icon in it; a file is not IconifyJSON; two sets have
        one name.
    """
    if not path:
        raise UserError(f"config.data.path is empty; {_REMEDY}")
    root = Path(path).expanduser()
    if not root.exists():
        raise UserError(f"config.data.path={path} does not exist; {_REMEDY}")
    sets: dict[str, IconSet] = {}
    for place in _places(root):
        found = read_picture_folder(place) if _is_picture_folder(place) else read_iconify(place)
        if found.name in sets:
            raise UserError(
                f"config.data.path={path} has two icon sets of the name {found.name!r}: "
                f"{sets[found.name].files[0]} and {found.files[0]}; remove one"
            )
        sets[found.name] = found
    if not any(found.icons for found in sets.values()):
        raise UserError(f"config.data.path={path} has no icons; {_REMEDY}")
    return tuple(found for _, found in sorted(sets.items()))


def _places(root: Path) -> list[Path]:
    """The files and folders that hold one set each."""
    if root.is_file() or any((root / name).is_file() for name in (ICONS, MANIFEST)):
        return [root]
    if has_pictures(root, below=False):
        return [root]
    places = []
    for child in sorted(child for child in root.iterdir() if not child.name.startswith(".")):
        if child.is_dir() and child.name.startswith("@"):
            places += _places(child)
        elif child.suffix == ".json" or _has_icons(child):
            places.append(child)
    return places


def _has_icons(place: Path) -> bool:
    return (place / ICONS).is_file() or (place.is_dir() and has_pictures(place, below=True))


def _is_picture_folder(place: Path) -> bool:
    return place.is_dir() and not (place / ICONS).is_file()
