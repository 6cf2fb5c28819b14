"""Parquet files with the pictures in them, such as img2dataset and Hugging Face write."""

from __future__ import annotations

import bisect
import collections
import itertools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.arrow import import_pyarrow, row_to_record
from imagen_jax.data.records import (
    Record,
    choose_image_field,
    file_stamp,
    find_files,
    home_of,
    stamp,
)
from imagen_jax.data.sources import BadItem
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow

# Decoded row groups that are kept, so that reading in order reads each once.
_KEPT = 2
_LARGE = 16 << 20

logger = logging.getLogger(__name__)


class ParquetRecords:
    """The rows of Parquet files, in the order of the files' names.

    The least that can be read of a Parquet file is a row group. Those of img2dataset hold
    thousands of pictures, too many to read for each single one of a shuffled run: `prepare_data`
    makes such files into ArrayRecord once, and a warning says so.

    Args:
      config: `path` is a folder with `.parquet` files below it, one of them, or a glob. Where some
        of a folder's files begin with the name of `split` and a "-" (as Hugging Face names them),
        only these are read.

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
        paths = find_files(config.path, ".parquet", "a folder of .parquet files, or a glob")
        if of_split := [path for path in paths if path.name.startswith(f"{config.split}-")]:
            paths = of_split
        with ThreadPoolExecutor(8) as pool:
            footers = list(pool.map(_read_footer, paths))
        self.skipped: collections.Counter[str] = collections.Counter()
        if unreadable := sum(footer is None for footer in footers):
            self.skipped["files cannot be read"] = unreadable
        # (file, row group), and the index behind its last row.
        self._groups: list[tuple[Path, int]] = []
        counts: list[int] = []
        largest = 0
        for path, footer in zip(paths, footers, strict=True):
            if footer is not None:
                groups, _ = footer
                self._groups += [(path, number) for number in range(len(groups))]
                counts += [rows for rows, _ in groups]
                largest = max([largest, *(size for _, size in groups)])
        self._ends = list(itertools.accumulate(counts))
        self._columns: list[str] = []
        self._field = ""
        columns = next((footer[1] for footer in footers if footer is not None), None)
        if columns is not None:
            self._field = choose_image_field(config, columns)
            self._columns = _needed_columns(config, columns, self._field)
        if largest > _LARGE:
            logger.warning(
                "%s has row groups of up to %.0f MB, and one is read for each picture of a "
                "shuffled run: convert it once with python -m imagen_jax.cli.prepare_data",
                config.path,
                largest / 1e6,
            )
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[int, pyarrow.Table] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def stamps(self) -> np.ndarray:
        counts = np.diff(self._ends, prepend=0).tolist()
        files = {path: file_stamp(path, self.home) for path, _ in self._groups}
        return stamp(
            (f"{self._field} {group} {files[path]}", count)
            for (path, group), count in zip(self._groups, counts, strict=True)
        )

    def record(self, index: int) -> Record:
        number = bisect.bisect_right(self._ends, index)
        table = self._group(number)
        within = index - (self._ends[number - 1] if number else 0)
        path, group = self._groups[number]
        key = f"{path.name}[{group}][{within}]"
        if within >= table.num_rows:
            raise BadItem(f"{key} is not there any more", "shard has changed")
        row = table.slice(within, 1)
        return row_to_record(row, key, self._field, self._config, path.parent)

    def _group(self, number: int) -> pyarrow.Table:
        pa = import_pyarrow()
        import pyarrow.parquet as pq

        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        path, group = self._groups[number]
        try:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(group, columns=self._columns)
        except FileNotFoundError as error:
            raise BadItem(f"{path}: {error}", "shard is gone") from error
        except (OSError, IndexError, pa.ArrowException) as error:
            raise BadItem(f"{path}: {error}", "damaged shard") from error
        with self._lock:
            self._kept[number] = table
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return table


def _read_footer(path: Path) -> tuple[list[tuple[int, int]], list[str]] | None:
    """(rows, bytes) of each row group and the columns; None if the file cannot be read."""
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
            return sizes, file.schema_arrow.names
    except (OSError, pa.ArrowException):
        return None


def _needed_columns(config: SourceConfig, columns: list[str], image_field: str) -> list[str]:
    """The picture, and the columns in which captions and score may be."""
    from imagen_jax.data.records import CAPTION_FIELDS

    named = [field.split("/")[0] for field in (*config.caption_fields, config.score_field) if field]
    for field in named:
        if field not in columns:
            raise UserError(
                f"config.data.path={config.path} has no column {field}; it has {', '.join(columns)}"
            )
    if not config.caption_fields:
        named += [field.split("/")[0] for field in CAPTION_FIELDS]
    return [name for name in columns if name == image_field or name in named]
