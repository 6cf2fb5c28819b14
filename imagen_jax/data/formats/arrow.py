"""Arrow files, such as Hugging Face's `datasets.save_to_disk` writes: memory-mapped, at random."""

from __future__ import annotations

import bisect
import collections
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.records import (
    Record,
    captions_of,
    choose_image_field,
    file_stamp,
    find_files,
    home_of,
    score_of,
    stamp,
)
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow

_WHAT = "a folder that datasets.save_to_disk wrote"


class ArrowRecords:
    """The rows of Arrow files. The files stay mapped: no row is in memory before it is read.

    Args:
      config: `path` is a folder; of a saved DatasetDict the one of `split` in it is read.

    Attributes:
      home: see `Records`.
      skipped: files that cannot be read.

    Raises:
      UserError: there are no files, or not the columns asked for; pyarrow is not installed.
    """

    def __init__(self, config: SourceConfig):
        import_pyarrow()
        self._config = config
        self.home = home_of(config.path)
        self._folder = _choose_split(config)
        self._open()
        self.skipped: collections.Counter[str] = collections.Counter()
        if self._unreadable:
            self.skipped["files cannot be read"] = self._unreadable
        self._field = ""
        if self._tables:
            self._field = choose_image_field(config, self._tables[0].column_names)

    def _open(self) -> None:
        pa = import_pyarrow()
        self._tables, self._paths, self._unreadable = [], [], 0
        for path in _data_files(self._folder):
            try:
                mapped = pa.memory_map(str(path))
                try:
                    table = pa.ipc.open_stream(mapped).read_all()
                except pa.ArrowInvalid:
                    # The other of Arrow's two layouts, which has an index at its end.
                    table = pa.ipc.open_file(mapped).read_all()
            except (OSError, pa.ArrowException):
                self._unreadable += 1
                continue
            self._tables.append(table)
            self._paths.append(path)
        self._ends = list(itertools.accumulate(table.num_rows for table in self._tables))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_tables", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def stamps(self) -> np.ndarray:
        return stamp(
            (f"{self._field} {file_stamp(path, self.home)}", table.num_rows)
            for path, table in zip(self._paths, self._tables, strict=True)
        )

    def record(self, index: int) -> Record:
        number = bisect.bisect_right(self._ends, index)
        table = self._tables[number]
        within = index - (self._ends[number] - table.num_rows)
        return row_to_record(
            table.slice(within, 1), f"row {index}", self._field, self._config, self._folder
        )


def row_to_record(
    row: pyarrow.Table, key: str, image_field: str, config: SourceConfig, folder: Path
) -> Record:
    """The record in a table of one row. Pictures are bytes, or a struct of `bytes` and `path`.

    Raises:
      BadItem: it has no picture, or text that cannot be read.
    """
    columns = {}
    for name, column in zip(row.column_names, row.columns, strict=True):
        try:
            columns[name] = column_values(column)[0]
        except UnicodeDecodeError as error:
            raise BadItem(f"{key}: column {name}: {error}", "text is not UTF-8") from error
    image = columns.pop(image_field)
    if isinstance(image, dict):
        path, image = image.get("path"), image.get("bytes")
        if image is None and path:
            image = read_beside(folder, path, key)
    if not isinstance(image, bytes):
        raise BadItem(f"{key} has no picture", "no picture")
    return Record(
        key=key,
        image=image,
        captions=captions_of(columns, config.caption_fields),
        score=score_of(columns, config.score_field),
    )


def import_pyarrow() -> Any:
    """The module. Raises UserError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise UserError(
            "this source needs pyarrow: pip install 'imagen-jax[data]' (or pip install pyarrow)"
        ) from error
    return pyarrow


def column_values(column: pyarrow.ChunkedArray) -> list[Any]:
    """A column as Python's objects; strings, which may be other bytes than UTF-8, as bytes.

    Raises:
      UnicodeDecodeError: such bytes are deeper in the column.
    """
    pa = import_pyarrow()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        column = column.cast(binary)
    return column.to_pylist()


def read_beside(folder: Path, path: str, key: str) -> bytes:
    """The picture that a row names. Raises BadItem if it cannot be read."""
    try:
        return (folder / path).read_bytes()
    except OSError as error:
        raise BadItem(f"{key}: {error}", "file is gone") from error


def _choose_split(config: SourceConfig) -> Path:
    root = Path(os.path.expanduser(config.path))
    if config.path and (root / "dataset_dict.json").is_file():
        names = json.loads((root / "dataset_dict.json").read_text())["splits"]
        if config.split not in names:
            raise UserError(
                f"config.data.split={config.split!r} is not one of {', '.join(names)} in "
                f"{config.path}"
            )
        return root / config.split
    return root


def _data_files(folder: Path) -> list[Path]:
    """As the dataset lists them, or all there are."""
    state = folder / "state.json"
    if state.is_file():
        return [folder / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
    return find_files(str(folder) if folder != Path(".") else "", ".arrow", _WHAT)
