"""Arrow files, such as `save_to_disk` of Hugging Face's `datasets` writes, read memory-mapped."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.files import (
    file_stamp,
    find_files,
    folder_of,
    name_and_size,
    record_stamps,
)
from imagen_jax.data.formats.splits import choose_files, choose_names
from imagen_jax.data.formats.tables import (
    TableFields,
    check_first,
    check_schemas,
    fields_of,
    has_picture,
    import_pyarrow,
    row_to_record,
)
from imagen_jax.data.parts import locate
from imagen_jax.data.records import Record
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow

_CACHED = ("cache-", "tmp", "indices")
# Entries of state.json.
_INDICES = ("_indices_data_files", "_indices_files")
_WHAT = "a folder that datasets.save_to_disk wrote"


@dataclasses.dataclass(frozen=True)
class _Part:
    """One file.

    Attributes:
      path: of the file.
      table: its rows, mapped into memory.
      fields: which columns are read.
      rows: the numbers of the rows that are used, `[N]`; None: all of them.
      left_out: rows without a picture.
    """

    path: Path
    table: pyarrow.Table
    fields: TableFields
    rows: np.ndarray | None
    left_out: int

    def __len__(self) -> int:
        return self.table.num_rows if self.rows is None else len(self.rows)


class ArrowRecords:
    """The rows of Arrow files. The files stay mapped; a row is in memory only once it is read.

    Args:
      config: `path` is a folder, a file or a glob. Of several splits (a saved DatasetDict, or names
        of files and folders, see `splits`), the part named by `split` is read.

    Attributes:
      folder: see `Records`.
      skipped: rows without a picture, files that cannot be read or have no column of pictures.

    Raises:
      UserError: there are no files, or no such split, or they lack the columns of pictures or
        captions; pyarrow is not installed.
    """

    def __init__(self, config: SourceConfig):
        import_pyarrow()
        self._config = config
        self.folder = folder_of(config.path)
        self._files = _data_files(config)
        tables, unreadable = self._open()
        if tables:
            check_schemas(config, [table.schema for table in tables])
        counts = {
            "rows without a picture (null)": sum(part.left_out for part in self._parts),
            "files without a column of pictures": len(tables) - len(self._parts),
            "files cannot be read": unreadable,
        }
        self.skipped = collections.Counter({what: n for what, n in counts.items() if n})
        check_first(config, self)

    def _open(self) -> tuple[list[pyarrow.Table], int]:
        """Maps all files; returns the tables that can be read, and the number of other files."""
        tables, self._parts, unreadable = [], [], 0
        for path, indices in self._files:
            table = _map_table(path)
            chosen = None if indices is None else _map_table(indices)
            if table is None or (indices is not None and chosen is None):
                unreadable += 1
                continue
            tables.append(table)
            fields = fields_of(self._config, table.schema)
            if fields is not None:
                self._parts.append(_make_part(path, table, fields, chosen))
        self._ends = list(itertools.accumulate(map(len, self._parts)))
        return tables, unreadable

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_parts", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def parts(self) -> Iterator[tuple[str, int]]:
        return ((name_and_size(part.path, self.folder), len(part)) for part in self._parts)

    def stamps(self) -> np.ndarray:
        return record_stamps(
            (f"{part.fields.image} {file_stamp(part.path, self.folder)}", len(part))
            for part in self._parts
        )

    def head(self, index: int, size: int) -> bytes:
        return self.record(index).image

    def record(self, index: int) -> Record:
        number, within = locate(self._ends, index)
        part = self._parts[number]
        row = within if part.rows is None else int(part.rows[within])
        table = part.table.slice(row, 1).select(part.fields.columns)
        folders = [part.path.parent, self.folder]
        return row_to_record(table, f"row {index}", part.fields, self._config, folders)


def _make_part(
    path: Path, table: pyarrow.Table, fields: TableFields, chosen: pyarrow.Table | None
) -> _Part:
    """A file without its rows that have no picture; `chosen` has the numbers of the used rows."""
    rows = None
    if chosen is not None:
        rows = chosen.column(0).to_numpy()
        rows = rows[rows < table.num_rows]
    there = has_picture(table.column(fields.image)).to_numpy()
    used = np.arange(table.num_rows) if rows is None else rows
    kept = used[there[used]]
    if len(kept) < len(used):
        rows = kept
    return _Part(path, table, fields, rows, len(used) - len(kept))


def _map_table(path: Path) -> pyarrow.Table | None:
    """The table of a file, mapped into memory; None if the file cannot be read."""
    pa = import_pyarrow()
    try:
        # A name that is not UTF-8 is passed as bytes.
        mapped = pa.memory_map(os.fsencode(path))
        try:
            return pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            # Arrow's other layout, which has an index at the end of the file.
            return pa.ipc.open_file(mapped).read_all()
    except (OSError, pa.ArrowException):
        return None


def _data_files(config: SourceConfig) -> list[tuple[Path, Path | None]]:
    """The files of the splits, each with the file of the row numbers that it uses, if it has one.

    Raises:
      UserError: there are none, or the set has no such split.
    """
    root = Path(os.path.expanduser(config.path))
    if config.path and (root / "dataset_dict.json").is_file():
        names = _listed(root / "dataset_dict.json", "splits")
        folders = [root / name for name in choose_names(config, names)]
        return [file for folder in folders for file in _files_in(folder)]
    if config.path and (root / "state.json").is_file():
        return _files_in(root)
    paths = find_files(config.path, ".arrow", _WHAT)
    if root.is_dir():
        # Hugging Face keeps results of `map` and `filter` in files of these names.
        paths = [p for p in paths if not p.name.startswith(_CACHED)] or paths
        paths = choose_files(config, paths, folder_of(config.path))
    files: dict[Path, Path | None] = {}
    for path in paths:
        has_state = root.is_dir() and (path.parent / "state.json").is_file()
        files |= dict(_files_in(path.parent)) if has_state else {path: None}
    return list(files.items())


def _files_in(folder: Path) -> list[tuple[Path, Path | None]]:
    """The files that the saved dataset in `folder` lists; without a list, all its Arrow files."""
    state = folder / "state.json"
    if not state.is_file():
        return [(path, None) for path in find_files(str(folder), ".arrow", _WHAT)]
    data = _listed(state, "_data_files")
    # Old versions saved a filtered set as all its rows and the numbers of those that are left.
    indices = [file for key in _INDICES for file in _listed(state, key, ())]
    if len(indices) > 1 or (indices and len(data) > 1):
        raise UserError(
            f"{state} lists several files with a choice of rows; load the set with datasets, and "
            "save it with save_to_disk again"
        )
    chosen = folder / indices[0] if indices else None
    return [(folder / file, chosen) for file in data]


def _listed(file: Path, key: str, default: Any = None) -> list[str]:
    """The names in a list of a JSON file: of splits, or of files in the same folder.

    Raises:
      UserError: the file is damaged, or a name is a path to another place.
    """
    try:
        found = json.loads(file.read_bytes())
        entries = (found[key] if default is None else found.get(key)) or default or ()
        names = [entry if isinstance(entry, str) else entry["filename"] for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}); save the set with "
            "datasets' save_to_disk again"
        ) from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise UserError(f"{file} names {name!r}, which is not a name in the same folder")
    return names
