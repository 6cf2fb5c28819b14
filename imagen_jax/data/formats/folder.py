"""A folder of pictures: captions in files beside them, or in a `metadata.jsonl`."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import (
    CAPTION_FIELDS,
    captions_in_fields,
    captions_of_files,
    decode_text,
    encoding_of,
    needs_json,
    nested,
    parse_object,
    score_in_field,
)
from imagen_jax.data.formats.files import (
    HIDDEN,
    composed,
    file_stamp,
    is_hidden,
    name_and_size,
    record_stamps,
    walk,
)
from imagen_jax.data.formats.labels import label_words
from imagen_jax.data.images import picture_endings, why_not_read
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem, hash01
from imagen_jax.errors import UserError

METADATA = "metadata.jsonl"
HELD_OUT_SHARE = 0.05
# With fewer pictures, each split is the whole folder.
HELD_OUT_MINIMUM = 100

_LAYOUT = (
    "put a picture.txt (or .json) with the caption beside each picture.jpg, or a metadata.jsonl "
    'with a line {"file_name": "picture.jpg", "text": "the caption"} for each picture'
)


@dataclasses.dataclass
class _Texts:
    """The captions and the score of a picture."""

    captions: tuple[str, ...] = ()
    score: float | None = None


class FolderRecords:
    """Pictures below a folder, in the order of their paths.

    The captions are those of the lines of `metadata.jsonl` that name the picture. If there are
    none, they come from the files beside it: the `.txt`, or the `.json` if that is empty or
    missing, or the fields that the config names (of which "txt" is the `.txt`).

    Links to folders are followed, hidden files and folders left out, see `walk`. Pictures without a
    caption are left out and counted in `skipped`. A picture is opened only when it is read, and
    raises BadItem then if it cannot be.

    Args:
      config: names the folder, `path`, and the fields of captions and score. With `captions` of
        "labels", the caption of a picture is the name of its folder, or, if that is a number, the
        one in `label_names`; with "none", all captions are empty.
      split: "train", "held_out", or None for all pictures. Of at least 100 pictures, those whose
        path hashes below 5 % are held out, so that added pictures move no other to another split.
        With fewer, each split is the whole folder.

    Attributes:
      folder: see `Records`.
      skipped: see `Records`.

    Raises:
      UserError: the folder does not exist, or has no picture with a caption.
    """

    def __init__(self, config: SourceConfig, split: str | None):
        path = config.path
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
        self._config = config
        texts = self._find_texts(root)
        if not texts:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.skipped.items())
            raise UserError(
                f"config.data.path={path} has no picture with a caption"
                f" ({reasons or 'no picture at all'}); {_LAYOUT}. Without captions, set "
                "config.data.captions to 'labels' (the names of the folders) or 'none'"
            )
        self.folder = root
        if split is not None and len(texts) >= HELD_OUT_MINIMUM:
            texts = {
                file: text
                for file, text in texts.items()
                if (hash01(os.path.relpath(file, root)) < HELD_OUT_SHARE) == (split == "held_out")
            }
        self._items = list(texts.items())

    def __len__(self) -> int:
        return len(self._items)

    def record(self, index: int) -> Record:
        file, texts = self._items[index]
        key = os.path.relpath(file, self.folder)
        return Record(key, self._read(file), texts.captions, texts.score)

    def parts(self) -> Iterator[tuple[str, int]]:
        return ((name_and_size(file, self.folder), 1) for file, _ in self._items)

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

    def _find_texts(self, root: Path) -> dict[Path, _Texts]:
        """Every picture with its captions, by path; counts in `skipped` what it leaves out."""
        pictures: set[Path] = set()
        listed: dict[Path, _Texts] = {}
        # The `.txt` and `.json` of each picture that has one.
        beside: dict[Path, dict[str, Path]] = {}
        reads_texts = self._config.captions == "text"
        for folder, names, hidden in walk(root):
            if METADATA in names and reads_texts and not hidden:
                self._read_metadata(folder, listed)
            texts = {
                composed(name): name
                for name in names
                if name.endswith((".txt", ".json")) and not is_hidden(name)
            }
            for name in names:
                stem, ending = os.path.splitext(name)
                files = {
                    kind: folder / texts[composed(stem + kind)]
                    for kind in (".txt", ".json")
                    if composed(stem + kind) in texts
                }
                if ending.lower() not in picture_endings():
                    self._count_other(ending, has_text=bool(files))
                elif hidden or is_hidden(name):
                    self.skipped[HIDDEN] += 1
                else:
                    pictures.add(folder / name)
                    beside[folder / name] = files
        if self._config.captions == "none":
            return {file: _Texts(("",)) for file in sorted(pictures)}
        if self._config.captions == "labels":
            captions = self._label_captions(root, pictures, self._config.label_names)
            return {file: _Texts((caption,)) for file, caption in captions.items()}
        by_name = {composed(str(file)): file for file in pictures}
        listed = {by_name.get(composed(str(file)), file): text for file, text in listed.items()}
        for file in [file for file in listed if file not in pictures and not file.is_file()]:
            del listed[file]
            self.skipped["lines whose picture is missing"] += 1
        for file in [file for file in listed if why_not_read(file.suffix.lower())]:
            del listed[file]
        found = {}
        for file in sorted(pictures | listed.keys()):
            texts = self._texts_of(listed.get(file), beside.get(file, {}))
            if texts is not None and texts.captions:
                found[file] = texts
            else:
                what = "without a caption" if texts is None else "with an empty caption"
                self.skipped[f"pictures {what}"] += 1
        return found

    def _count_other(self, ending: str, *, has_text: bool) -> None:
        """Counts a picture of a format that is not read, by its ending."""
        reason = why_not_read(ending.lower())
        if not reason and has_text and ending.lower() not in (".txt", ".json"):
            reason = f"files with a text beside them, ending in {ending or 'nothing'}, are not read"
        if reason:
            self.skipped[reason] += 1

    def _texts_of(self, listed: _Texts | None, beside: dict[str, Path]) -> _Texts | None:
        """The captions and score of a picture, None if there is no line and no file of them.

        Args:
          listed: what `metadata.jsonl` says about it.
          beside: its `.txt` and `.json`.
        """
        fields, score_field = self._config.caption_fields, self._config.score_field
        is_listed = listed is not None and listed.captions and "txt" not in fields
        if is_listed and (listed.score is not None or not score_field):
            return listed
        text = self._read_text(beside[".txt"]) if ".txt" in beside else None
        values: dict[str, Any] | None = None
        if ".json" in beside and needs_json(text or b"", fields, score_field):
            values = self._read_json(beside[".json"])
        if listed is None and text is None and values is None:
            return None
        captions = captions_of_files(text or b"", values or {}, fields)
        score = score_in_field(values or {}, score_field)
        if listed is not None:
            others = () if is_listed else captions
            captions = tuple(dict.fromkeys((*others, *listed.captions)))
            score = listed.score if listed.score is not None else score
        return _Texts(captions, score)

    def _read_text(self, file: Path) -> bytes | None:
        """What a text file holds, None if it cannot be read."""
        try:
            return file.read_bytes()
        except OSError:
            self.skipped["text files that cannot be read"] += 1
            return None

    def _read_json(self, file: Path) -> dict[str, Any] | None:
        data = self._read_text(file)
        try:
            return None if data is None else parse_object(decode_text(data))
        except ValueError:
            self.skipped["damaged .json files"] += 1
            return None

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

    def _read_metadata(self, folder: Path, listed: dict[Path, _Texts]) -> None:
        """Adds the captions and scores in the lines of a `metadata.jsonl`.

        A picture may have several lines; all their captions are kept.
        """
        fields = tuple(field for field in self._config.caption_fields if field != "txt")
        try:
            with open(folder / METADATA, "rb") as file:
                encoding = encoding_of(file.read(4))
            with open(folder / METADATA, encoding=encoding, errors="replace") as file:
                for line in filter(str.strip, file):
                    self._read_line(folder, line, fields, listed)
        except OSError:
            self.skipped[f"files {METADATA} that cannot be read"] += 1

    def _read_line(
        self, folder: Path, line: str, fields: tuple[str, ...], listed: dict[Path, _Texts]
    ) -> None:
        try:
            entry = parse_object(line)
            # The picture may lie in a folder below or beside.
            file = Path(os.path.normpath(folder / entry["file_name"]))
            has_text = any(nested(entry, field) is not None for field in fields or CAPTION_FIELDS)
        except (ValueError, KeyError, TypeError):
            has_text = False
        if not has_text:
            self.skipped[f"lines of {METADATA} without file_name and caption"] += 1
            return
        texts = listed.setdefault(file, _Texts())
        captions = captions_in_fields(entry, fields)
        texts.captions = tuple(dict.fromkeys((*texts.captions, *captions)))
        if texts.score is None:
            texts.score = score_in_field(entry, self._config.score_field)
