"""Arrow files, such as `save_to_disk` of Hugging Face's `datasets` writes, read memory-mapped."""

from __future__ import annotations

import collections
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import choose_image_field
from imagen_jax.data.formats.files import (
    file_stamp,
    find_files,
    folder_of,
    name_and_size,
    record_stamps,
)
from imagen_jax.data.formats.tables import import_pyarrow, row_to_record
from imagen_jax.data.parts import locate
from imagen_jax.data.records import Record
from imagen_jax.errors import UserError

_WHAT = "a folder that datasets.save_to_disk wrote"


class ArrowRecords:
    """The rows of Arrow files. The files stay mapped; a row is in memory only once it is read.

    Args:
      config: `path` is a folder; of a saved DatasetDict, the part named by `split` is read.

    Attributes:
      folder: see `Records`.
      skipped: files that cannot be read.

    Raises:
      UserError: there are no files, or they lack the picture column; pyarrow is not installed.
    """

    def __init__(self, config: SourceConfig):
        import_pyarrow()
        self._config = config
        self.folder = folder_of(config.path)
        self._split_folder = _choose_split(config)
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
        for path in _data_files(self._split_folder):
            try:
                mapped = pa.memory_map(str(path))
                try:
                    table = pa.ipc.open_stream(mapped).read_all()
                except pa.ArrowInvalid:
                    # Arrow's other layout, which has an index at the end of the file.
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

    def parts(self) -> Iterator[tuple[str, int]]:
        return (
            (name_and_size(path, self.folder), table.num_rows)
            for path, table in zip(self._paths, self._tables, strict=True)
        )

    def stamps(self) -> np.ndarray:
        return record_stamps(
            (f"{self._field} {file_stamp(path, self.folder)}", table.num_rows)
            for path, table in zip(self._paths, self._tables, strict=True)
        )

    def head(self, index: int, size: int) -> bytes:
        return self.record(index).image

    def record(self, index: int) -> Record:
        number, within = locate(self._ends, index)
        row = self._tables[number].slice(within, 1)
        return row_to_record(row, f"row {index}", self._field, self._config, self._split_folder)


def _choose_split(config: SourceConfig) -> Path:
    """The folder that `split` names in a saved DatasetDict; else the folder itself."""
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
    """The files that the dataset lists; without a list, all Arrow files of the folder."""
    state = folder / "state.json"
    if state.is_file():
        return [folder / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
    return find_files(str(folder) if folder != Path(".") else "", ".arrow", _WHAT)
