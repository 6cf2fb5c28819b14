"""Parquet files with the pictures in them, such as img2dataset and Hugging Face write."""

from __future__ import annotations

import bisect
import collections
import hashlib
import itertools
import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import (
    CAPTION_FIELDS,
    captions_in_fields,
    choose_image_field,
    score_in_field,
)
from imagen_jax.data.formats.files import file_stamp, find_files, home_of, stamp
from imagen_jax.data.formats.offsets import Table, load_indices
from imagen_jax.data.formats.parquet_pages import (
    OtherLayout,
    Place,
    is_page,
    locate_values,
    read_place,
)
from imagen_jax.data.formats.tables import column_values, import_pyarrow, read_beside, row_to_record
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

# A picture's place, and offset and size of what the index holds of the other columns.
_COLUMNS = len(Place._fields) + 2
# In the place of `size`: the picture is read with its row group, whose number is in `offset`, and
# is the row `skip` of it.
_IN_GROUP = -2
# Pages and row groups that are kept, so that reading in order reads each once.
_KEPT = 2
_LARGE = 16 << 20

logger = logging.getLogger(__name__)


class ParquetRecords:
    """The rows of Parquet files, in the order of the files' names.

    Where the pictures lie is looked for once and stored with the captions, see `offsets` and
    `parquet_pages`; the whole set is read once for that. Then a picture without compression or
    with Snappy is read alone, another with its page, and what `parquet_pages` does not know with
    its row group, the least that pyarrow reads. A warning says where that is much.

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
        names = _first_columns(paths)
        self._field, self._columns = "", []
        if names is not None:
            self._field = choose_image_field(config, names)
            self._columns = _needed_columns(config, names, self._field)
        columns = _Columns(self._field, tuple(self._columns), config)
        self._indices, unreadable = load_indices(paths, columns.kind, _COLUMNS, columns.index)
        self._ends = list(itertools.accumulate(index.length for index in self._indices))
        self.skipped: collections.Counter[str] = collections.Counter()
        if unreadable:
            self.skipped["files cannot be read"] = unreadable
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # By the file's number and the place in it: a page, or a row group with its number.
        self._kept: collections.OrderedDict[tuple, Any] = collections.OrderedDict()
        self._has_warned = False

    def __getstate__(self) -> dict[str, Any]:
        left = ("_lock", "_kept", "_has_warned")
        return {k: v for k, v in self.__dict__.items() if k not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def stamps(self) -> np.ndarray:
        return stamp(
            (f"{self._field} {file_stamp(index.path, self.home)}", index.length)
            for index in self._indices
        )

    def record(self, index: int) -> Record:
        number = bisect.bisect_right(self._ends, index)
        file = self._indices[number]
        within = index - (self._ends[number] - file.length)
        *values, offset, size = file.row(within)
        place = Place(*values)
        key = f"{file.path.name}[{within}]"
        pa = import_pyarrow()
        try:
            if place.size == _IN_GROUP:
                return self._from_group(number, place, key)
            text = json.loads(file.extra(offset, size))
            if place.size >= 0:
                image = self._read(number, place)
            elif text["path"]:
                image = read_beside(file.path.parent, text["path"], key)
            else:
                raise BadItem(f"{key} has no picture", "no picture")
        except FileNotFoundError as error:
            raise BadItem(f"{key}: {error}", "shard is gone") from error
        except (OSError, IndexError, pa.ArrowException, ValueError) as error:
            raise BadItem(f"{key}: {error}", "damaged shard") from error
        return Record(key, image, tuple(text["captions"]), text["score"])

    def _read(self, number: int, place: Place) -> bytes:
        path = self._indices[number].path
        if not is_page(place):
            return read_place(path, place)
        page = self._keep(
            (number, "page", place.offset),
            lambda: read_place(path, place._replace(skip=0, size=place.plain)),
            len,
        )
        return page[place.skip : place.skip + place.size]

    def _from_group(self, number: int, place: Place, key: str) -> Record:
        path = self._indices[number].path
        table = self._keep(
            (number, "group", place.offset),
            lambda: _read_group(path, place.offset, self._columns),
            lambda table: table.nbytes,
        )
        if place.skip >= table.num_rows:
            raise BadItem(f"{key} is not there any more", "shard has changed")
        row = table.slice(place.skip, 1)
        return row_to_record(row, key, self._field, self._config, path.parent)

    def _keep(self, name: tuple, read: Any, size: Any) -> Any:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        value = read()
        with self._lock:
            self._kept[name] = value
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            warn = size(value) > _LARGE and not self._has_warned
            self._has_warned |= warn
        if warn:
            logger.warning(
                "%s: %.0f MB are read for each picture of a shuffled run, because of how the "
                "files are written: convert them once with python -m imagen_jax.cli.prepare_data",
                self._config.path,
                size(value) / 1e6,
            )
        return value


class _Columns:
    """What is indexed of each file."""

    def __init__(self, field: str, columns: tuple[str, ...], config: SourceConfig):
        self._field = field
        self._columns = columns
        self._caption_fields = config.caption_fields
        self._score_field = config.score_field
        # What it holds of captions and scores depends on the fields that are asked for.
        asked = [field, columns, config.caption_fields, config.score_field, CAPTION_FIELDS]
        digest = hashlib.blake2b(json.dumps(asked).encode(), digest_size=6).hexdigest()
        self.kind = f"parquet-{digest}"

    def index(self, path: Path) -> Table:
        """Looks through one file: `[N, 8]`. Raises OSError if it cannot be read."""
        pa = import_pyarrow()
        import pyarrow.parquet as pq

        rows: list[tuple[int, ...]] = []
        extra = bytearray()
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    try:
                        found = zip(
                            self._places(path, file, group), self._texts(file, group), strict=True
                        )
                        for place, text in list(found):
                            rows.append((*place, len(extra), len(text)))
                            extra += text
                    # Damaged, or another layout: the rows are read one by one, and the bad ones
                    # left out then.
                    except (OSError, ValueError, BadItem, KeyError, pa.ArrowException):
                        for row in range(file.metadata.row_group(group).num_rows):
                            rows.append((*Place(group, 0, 0, row, _IN_GROUP, 0), 0, 0))
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
        return Table(np.array(rows, np.int64).reshape(-1, _COLUMNS), extra=bytes(extra))

    def _places(self, path: Path, file: pyarrow.parquet.ParquetFile, group: int) -> list[Place]:
        metadata = file.metadata.row_group(group)
        for number in range(metadata.num_columns):
            chunk = metadata.column(number)
            if chunk.path_in_schema in (self._field, f"{self._field}.bytes"):
                column = file.schema.column(number)
                if column.max_repetition_level:
                    raise OtherLayout("a list of pictures")
                return locate_values(path, chunk, column.max_definition_level)
        raise OtherLayout(f"no column of bytes in {self._field}")

    def _texts(self, file: pyarrow.parquet.ParquetFile, group: int) -> list[bytes]:
        """Of each row captions, score and the path that a picture may have in place of bytes."""
        names = [name for name in self._columns if name != self._field]
        table = file.read_row_group(group, columns=[*names, f"{self._field}.path"])
        columns = {name: column_values(table.column(name)) for name in table.column_names}
        paths = columns.pop(self._field, None)
        texts = []
        for row in range(file.metadata.row_group(group).num_rows):
            values = {name: column[row] for name, column in columns.items()}
            text = {
                "captions": captions_in_fields(values, self._caption_fields),
                "score": score_in_field(values, self._score_field),
                "path": ((paths[row] if paths else None) or {}).get("path"),
            }
            texts.append(json.dumps(text, ensure_ascii=False).encode())
        return texts


def _read_group(path: Path, group: int, columns: list[str]) -> pyarrow.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=columns)


def _first_columns(paths: list[Path]) -> list[str] | None:
    """The columns of the first file that can be read."""
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    for path in paths:
        try:
            return pq.read_schema(path).names
        except (OSError, pa.ArrowException):
            continue
    return None


def _needed_columns(config: SourceConfig, columns: list[str], image_field: str) -> list[str]:
    """The picture, and the columns in which captions and score may be."""
    named = [field.split("/")[0] for field in (*config.caption_fields, config.score_field) if field]
    for field in named:
        if field not in columns:
            raise UserError(
                f"config.data.path={config.path} has no column {field}; it has {', '.join(columns)}"
            )
    if not config.caption_fields:
        named += [field.split("/")[0] for field in CAPTION_FIELDS]
    return [name for name in columns if name == image_field or name in named]
