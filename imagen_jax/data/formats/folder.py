"""A folder of pictures with captions: `.txt` files beside them, or a `metadata.jsonl`."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path

import numpy as np

from imagen_jax.data.formats.fields import clean_caption
from imagen_jax.data.formats.files import composed, file_stamp, record_stamps
from imagen_jax.data.formats.labels import label_words
from imagen_jax.data.images import picture_endings
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem, hash01
from imagen_jax.errors import UserError

METADATA = "metadata.jsonl"
HELD_OUT_SHARE = 0.05
# With fewer pictures, each split is the whole folder.
HELD_OUT_MINIMUM = 100

_LAYOUT = (
    "put a picture.txt with the caption beside each picture.jpg, or one metadata.jsonl with a "
    'line {"file_name": "picture.jpg", "text": "the caption"} for each picture'
)


class FolderRecords:
    """Pictures below a folder, in the order of their paths.

    Pictures without a caption are left out and counted in `skipped`. A picture is opened only when
    it is read, and raises BadItem then if it cannot be.

    Args:
      path: the folder. Pictures in folders below it are found too.
      split: "train", "held_out", or None for all pictures. Of at least 100 pictures, those whose
        path hashes below 5 % are held out, so that added pictures move no other to another split.
        With fewer, each split is the whole folder.
      captions_are: "text"; "labels": the name of the folder of a picture is its caption; "none":
        all captions are empty.
      label_names: the names of the classes if the names of the folders are their numbers.

    Attributes:
      folder: see `Records`.
      skipped: see `Records`.

    Raises:
      UserError: the folder does not exist, or has no picture with a caption.
    """

    def __init__(
        self,
        path: str,
        split: str | None,
        captions_are: str = "text",
        label_names: tuple[str, ...] = (),
    ):
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
        captions = self._find_captions(root, captions_are, label_names)
        if not captions:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.skipped.items())
            raise UserError(
                f"config.data.path={path} has no picture with a caption"
                f" ({reasons or 'no picture at all'}); {_LAYOUT}. Without captions, set "
                "config.data.captions to 'labels' (the names of the folders) or 'none'"
            )
        self.folder = root
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
        key = os.path.relpath(file, self.folder)
        return Record(key, self._read(file), (caption,))

    def stamps(self) -> np.ndarray:
        return record_stamps((file_stamp(file, self.folder), 1) for file, _ in self._items)

    def head(self, index: int, size: int) -> bytes:
        file, _ = self._items[index]
        return self._read(file, size)

    def _read(self, file: Path, size: int = -1) -> bytes:
        try:
            with open(file, "rb") as stream:
                return stream.read(size)
        except FileNotFoundError as error:
            raise BadItem(f"{file}: {error}", "file is gone") from error
        except OSError as error:
            raise BadItem(f"{file}: {error}", "file cannot be read") from error

    def _find_captions(
        self, root: Path, captions_are: str, label_names: tuple[str, ...]
    ) -> dict[Path, str]:
        """Every picture with its caption, by path; counts in `skipped` what it leaves out."""
        listed: dict[Path, str] = {}
        beside: dict[Path, str] = {}
        pictures: set[Path] = set()
        for directory, _, names in os.walk(root):
            folder = Path(directory)
            if METADATA in names and captions_are == "text":
                listed |= self._read_metadata(folder)
            texts = {composed(name): name for name in names if name.endswith(".txt")}
            for name in names:
                stem, extension = os.path.splitext(name)
                if extension.lower() not in picture_endings():
                    continue
                pictures.add(folder / name)
                text = texts.get(composed(f"{stem}.txt"))
                if text and captions_are == "text":
                    beside[folder / name] = _read_text(folder / text)
        if captions_are == "none":
            return dict.fromkeys(sorted(pictures), "")
        if captions_are == "labels":
            return self._label_captions(root, pictures, label_names)
        by_name = {composed(str(file)): file for file in pictures}
        listed = {by_name.get(composed(str(file)), file): text for file, text in listed.items()}
        for file in [file for file in listed if file not in pictures and not file.is_file()]:
            del listed[file]
            self.skipped["lines whose picture is missing"] += 1
        captions = beside | listed
        # Zero is not counted, since it would add an entry.
        if missing := len(pictures - captions.keys()):
            self.skipped["pictures without a caption"] = missing
        if empty := sum(not caption for caption in captions.values()):
            self.skipped["pictures with an empty caption"] = empty
        return {file: caption for file, caption in sorted(captions.items()) if caption}

    def _label_captions(
        self, root: Path, pictures: set[Path], names: tuple[str, ...]
    ) -> dict[Path, str]:
        """Every picture with the name of its folder as caption."""
        words = {
            folder: label_words(folder.name, names)
            for folder in {file.parent for file in pictures} - {root}
        }
        if missing := sum(not words.get(file.parent) for file in pictures):
            self.skipped["pictures that are not in the folder of a class"] = missing
        return {file: words[file.parent] for file in sorted(pictures) if words.get(file.parent)}

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
                # The picture may lie in a folder below or beside.
                captions[Path(os.path.normpath(folder / name))] = " ".join(words)
        return captions


def _read_text(file: Path) -> str:
    return clean_caption(file.read_bytes())
