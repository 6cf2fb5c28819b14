"""A folder of pictures with captions: `.txt` files beside them, or a `metadata.jsonl`."""

from __future__ import annotations

import collections
import json
import logging
import os
from pathlib import Path

import numpy as np

from imagen_jax.data.formats.fields import clean_caption
from imagen_jax.data.formats.files import EXTENSIONS, file_stamp, stamp
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem, hash01
from imagen_jax.errors import UserError

METADATA = "metadata.jsonl"
HELD_OUT_SHARE = 0.05
# A folder with fewer pictures is too small to spare any: both splits are then all of it.
HELD_OUT_MINIMUM = 100

_LAYOUT = (
    "put a picture.txt with the caption beside each picture.jpg, or one metadata.jsonl with a "
    'line {"file_name": "picture.jpg", "text": "the caption"} for each picture'
)

logger = logging.getLogger(__name__)


class FolderRecords:
    """Pictures below a folder, in the order of their paths.

    Pictures without a caption are left out and counted in `skipped` (reason: number). Pictures
    are opened when an item is asked for; one that cannot be decoded raises BadItem then.

    Args:
      path: the folder. Pictures in folders below it are found too.
      split: of at least 100 pictures, those whose path hashes below 5 % are "held_out", so that
        adding pictures moves none across. A smaller folder is the same in both splits. None: all.

    Raises:
      UserError: there is no such folder, or no picture with a caption in it.
    """

    def __init__(self, path: str, split: str | None):
        if not path:
            raise UserError(
                "config.data.path is empty; set it to the folder of your pictures "
                "(--config.data.path=DIR)"
            )
        root = Path(os.path.normpath(Path(path).expanduser()))
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise UserError(f"config.data.path={path} {what}; set it to a folder of pictures")
        self.skipped: collections.Counter[str] = collections.Counter()
        captions = self._find_captions(root)
        if not captions:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.skipped.items())
            raise UserError(
                f"config.data.path={path} has no picture with a caption"
                f" ({reasons or 'no picture at all'}); {_LAYOUT}"
            )
        for reason, number in self.skipped.items():
            logger.warning("%s: %d skipped: %s", path, number, reason)
        self._root = root
        if split is not None and len(captions) >= HELD_OUT_MINIMUM:
            captions = {
                file: caption
                for file, caption in captions.items()
                if (hash01(os.path.relpath(file, root)) < HELD_OUT_SHARE) == (split == "held_out")
            }
        self._items = list(captions.items())

    def __len__(self) -> int:
        return len(self._items)

    def record(self, index: int) -> Record:
        file, caption = self._items[index]
        key = os.path.relpath(file, self._root)
        try:
            return Record(key, file.read_bytes(), (caption,))
        except FileNotFoundError as error:
            raise BadItem(f"{file}: {error}", "file is gone") from error
        except OSError as error:
            raise BadItem(f"{file}: {error}", "file cannot be read") from error

    @property
    def home(self) -> Path:
        return self._root

    def stamps(self) -> np.ndarray:
        return stamp((file_stamp(file, self._root), 1) for file, _ in self._items)

    def head(self, index: int, size: int) -> bytes:
        with open(self._items[index][0], "rb") as file:
            return file.read(size)

    def _find_captions(self, root: Path) -> dict[Path, str]:
        """Every picture with its caption, by path; counts what it leaves out."""
        listed: dict[Path, str] = {}
        beside: dict[Path, str] = {}
        pictures: set[Path] = set()
        for directory, _, names in os.walk(root):
            folder = Path(directory)
            if METADATA in names:
                listed |= self._read_metadata(folder)
            texts = {name for name in names if name.endswith(".txt")}
            for name in names:
                stem, extension = os.path.splitext(name)
                if extension.lower() not in EXTENSIONS:
                    continue
                pictures.add(folder / name)
                if f"{stem}.txt" in texts:
                    beside[folder / name] = _read_text(folder / f"{stem}.txt")
        for file in [file for file in listed if file not in pictures and not file.is_file()]:
            del listed[file]
            self.skipped["lines whose picture is missing"] += 1
        captions = beside | listed
        # Adding zero would make an entry.
        if missing := len(pictures - captions.keys()):
            self.skipped["pictures without a caption"] = missing
        if empty := sum(not caption for caption in captions.values()):
            self.skipped["pictures with an empty caption"] = empty
        return {file: caption for file, caption in sorted(captions.items()) if caption}

    def _read_metadata(self, folder: Path) -> dict[Path, str]:
        captions = {}
        with open(folder / METADATA, encoding="utf-8-sig", errors="replace") as file:
            for line in filter(str.strip, file):
                try:
                    entry = json.loads(line)
                    name, words = os.fspath(entry["file_name"]), entry["text"].split()
                except (ValueError, KeyError, TypeError, AttributeError):
                    self.skipped[f"lines of {METADATA} without file_name and text"] += 1
                    continue
                # The picture may lie in another folder.
                captions[Path(os.path.normpath(folder / name))] = " ".join(words)
        return captions


def _read_text(file: Path) -> str:
    return clean_caption(file.read_bytes())
