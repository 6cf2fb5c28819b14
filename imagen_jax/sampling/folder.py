"""A directory of drawn pictures, which an interrupted command fills up when it is run again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_jax import pictures as images
from imagen_jax.config import flatten
from imagen_jax.errors import UserError
from imagen_jax.files import write_json
from imagen_jax.sampling.origin import Origin

SETTINGS_FILE = "settings.json"
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif")
# Differences that a message lists.
MOST_DIFFERENCES = 8


class PictureFolder:
    """The pictures of one origin as files; a `Shelf`.

        settings.json                          what the pictures are drawn from
        STAGE/000_seed0_a-red-circle.png       a picture, with its prompt, seed and settings
        STAGE/000_seed0_a-red-circle.json      the same entries as text
        grid_STAGE.png                         all pictures; grid_STAGE_01.png, ... if they are many

    Args:
      directory: made if missing. If it holds pictures, they must be of the same origin.
      origin: what the pictures are drawn from.

    Raises:
      UserError: the directory holds other pictures, or cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str], origin: Origin):
        self.path = epath.Path(directory)
        self._origin = origin
        try:
            self._claim()
            self._names = {
                stage: {path.name for path in (self.path / stage).glob("*.png")}
                for stage in origin.settings
            }
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error

    def has(self, stage: str, row: int) -> bool:
        """Whether the picture was written before."""
        return self._origin.file_name(row) in self._names[stage]

    def read(self, stage: str, row: int) -> np.ndarray:
        """`[H, W, 3]` uint8. Raises UserError for a damaged file."""
        from PIL import Image

        path = self.path / stage / self._origin.file_name(row)
        try:
            with path.open("rb") as file, Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); delete it, and the same command draws it again"
            ) from error

    def write(self, stage: str, row: int, picture: np.ndarray) -> None:
        """Writes `[H, W, 3]` uint8; a kill leaves the whole picture or none."""
        name = self._origin.file_name(row)
        metadata = self._origin.picture_metadata(stage, row)
        images.save_png(self.path / stage / name, picture, metadata)
        self._names[stage].add(name)

    def write_grids(self) -> list[epath.Path]:
        """Writes the pictures of each stage as labelled grids, and returns their paths.

        A grid that would be too large for a page has several, with large pictures reduced.
        """
        paths = []
        origin, columns = self._origin, len(self._origin.seeds)
        for stage in origin.settings:
            shape = self.read(stage, 0).shape
            layout = images.grid_layout(len(origin.prompts), columns, shape[0], shape[1])
            count = len(layout.pages)
            for number, page in enumerate(layout.pages, 1):
                ending = f"_{number:0{len(str(count))}d}" if count > 1 else ""
                rows = [
                    [
                        images.reduced(self.read(stage, line.row * columns + i), layout.reduction)
                        for i in line.columns
                    ]
                    for line in page
                ]
                labels = [origin.prompts[line.row].strip() or "(empty prompt)" for line in page]
                about = {
                    "prompts": [origin.prompts[line.row] for line in page],
                    "seeds": list(origin.seeds),
                    **origin.metadata(stage),
                }
                paths.append(self.path / f"grid_{stage}{ending}.png")
                images.save_png(paths[-1], images.labelled_grid(rows, labels), about)
        return paths

    def _claim(self) -> None:
        now, file = self._origin.to_json_dict(), self.path / SETTINGS_FILE
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give a directory")
        if file.exists():
            try:
                before = json.loads(file.read_text())
            except ValueError as error:
                raise UserError(
                    f"{file} is damaged; delete {self.path}, or give another"
                ) from error
            check_same(self.path, "pictures", before, now)
        else:
            folders = [self.path, *(self.path / stage for stage in self._origin.settings)]
            found = [path for folder in folders for path in _pictures_in(folder)]
            if found:
                raise UserError(
                    f"{self.path} holds other pictures ({found[0].name}), which are not "
                    "overwritten; give another directory"
                )
        for stage in self._origin.settings:
            (self.path / stage).mkdir(parents=True, exist_ok=True)
        write_json(file, now)


def check_same(
    directory: str | os.PathLike[str], what: str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raises UserError, which lists the differences, unless both settings are the same.

    Args:
      directory: where `before` was found.
      what: is there, such as "pictures".
      before, now: nested settings as plain JSON values.
    """
    # Through JSON, which turns tuples into lists, as in the stored settings.
    now = flatten(json.loads(json.dumps(now)))
    before = flatten(before)
    changed = [
        f"{key}: {before.get(key, '(absent)')} in the directory, {now.get(key, '(absent)')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        more = len(changed) - MOST_DIFFERENCES
        listed = [*changed[:MOST_DIFFERENCES], *([f"and {more:,} more"] if more > 0 else [])]
        lines = "\n  ".join(listed)
        raise UserError(
            f"{directory} holds {what} with other settings:\n  {lines}\n"
            "Give another directory, or delete this one"
        )


def _pictures_in(directory: epath.Path) -> list[epath.Path]:
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.suffix.lower() in PICTURE_ENDINGS]
