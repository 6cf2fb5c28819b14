"""A folder of pictures with captions: `.txt` files beside them, or a `metadata.jsonl`."""

from __future__ import annotations

import collections
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.data.images import decode_image
from imagen_jax.data.sources import BadItem, Item, hash01
from imagen_jax.errors import UserError

EXTENSIONS = (
    ".avif",
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
METADATA = "metadata.jsonl"
HELD_OUT_SHARE = 0.05
# A folder with fewer pictures is too small to spare any: both splits are then all of it.
HELD_OUT_MINIMUM = 100

_LAYOUT = (
    "put a picture.txt with the caption beside each picture.jpg, or one metadata.jsonl with a "
    'line {"file_name": "picture.jpg", "text": "the caption"} for each picture'
)

logger = logging.getLogger(__name__)


class FolderSource:
    """Pictures below a folder, in the order of their paths.

    Pictures without a caption are left out and counted in `skipped` (reason: number). Pictures
    are opened when an item is asked for; one that cannot be decoded raises BadItem then.

    Args:
      path: the folder. Pictures in folders below it are found too.
      split: of at least 100 pictures, those whose path hashes below 5 % are "held_out", so that
        adding pictures moves none across. A smaller folder is the same in both splits.
      image_size: side of the square that each picture is cropped and resized to.

    Raises:
      UserError: there is no such folder, or no picture with a caption in it.
    """

    endless = False

    def __init__(self, path: str, split: str, image_size: int):
        if not path:
            raise UserError(
                "config.data.path is empty; set it to the folder of your pictures "
                "(--config.data.path=DIR)"
            )
        root = Path(path).expanduser()
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise UserError(f"config.data.path={path} {what}; set it to a folder of pictures")
        self.image_size = image_size
        self.skipped: collections.Counter[str] = collections.Counter()
        captions = dict(sorted(self._scan(root)))
        if not captions:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.skipped.items())
            raise UserError(
                f"config.data.path={path} has no picture with a caption"
                f" ({reasons or 'no picture at all'}); {_LAYOUT}"
            )
        for reason, number in self.skipped.items():
            logger.warning("%s: %d skipped: %s", path, number, reason)
        if len(captions) >= HELD_OUT_MINIMUM:
            captions = {
                file: caption
                for file, caption in captions.items()
                if (hash01(file.relative_to(root).as_posix()) < HELD_OUT_SHARE)
                == (split == "held_out")
            }
        self._items = list(captions.items())

    def __len__(self) -> int:
        return len(self._items)

    def item(self, index: int) -> Item:
        file, caption = self._items[index]
        try:
            return Item(decode_image(file.read_bytes(), self.image_size), caption)
        except (OSError, BadItem) as error:
            raise BadItem(f"{file}: {error}") from error

    def _scan(self, root: Path) -> Iterator[tuple[Path, str]]:
        """Every picture with its caption; counts what it leaves out."""
        for directory, _, names in os.walk(root, followlinks=True):
            folder = Path(directory)
            listed = self._read_metadata(folder) if METADATA in names else {}
            # A name in the metadata may lead into another folder.
            for name, caption in listed.items():
                if (folder / name).is_file():
                    yield folder / name, caption
                else:
                    self.skipped["lines whose picture is missing"] += 1
            present = set(names)
            for name in names:
                stem, extension = os.path.splitext(name)
                if extension.lower() not in EXTENSIONS or name in listed:
                    continue
                if f"{stem}.txt" not in present:
                    if not listed:
                        self.skipped["pictures without a caption"] += 1
                    continue
                if caption := _read_text(folder / f"{stem}.txt"):
                    yield folder / name, caption
                else:
                    self.skipped["pictures with an empty caption"] += 1

    def _read_metadata(self, folder: Path) -> dict[str, str]:
        captions = {}
        with open(folder / METADATA, encoding="utf-8-sig", errors="replace") as file:
            for line in filter(str.strip, file):
                try:
                    entry = json.loads(line)
                    name, caption = str(entry["file_name"]), _clean(entry["text"])
                except (ValueError, KeyError, TypeError, AttributeError):
                    self.skipped[f"lines of {METADATA} without file_name and text"] += 1
                    continue
                if caption:
                    captions[os.path.normpath(name)] = caption
                else:
                    self.skipped["pictures with an empty caption"] += 1
        return captions


def _read_text(file: Path) -> str:
    return _clean(file.read_text(encoding="utf-8-sig", errors="replace"))


def _clean(caption: str) -> str:
    """The caption on one line."""
    return " ".join(caption.split())
