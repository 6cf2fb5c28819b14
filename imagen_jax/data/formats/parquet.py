"""Parquet files with the pictures in them, such as img2dataset and Hugging Face write."""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import CAPTION_FIELDS, IMAGE_FIELDS, score_in_field
from imagen_jax.data.formats.files import find_files, folder_of
from imagen_jax.data.formats.labels import LABEL_FIELDS
from imagen_jax.data.formats.offsets import Index, Table, load_indices
from imagen_jax.data.formats.parquet_pages import (
    UnsupportedLayout,
    ValuePlace,
    is_whole_page,
    locate_values,
    read_value,
)
from imagen_jax.data.formats.splits import choose_files
from imagen_jax.data.formats.tables import (
    TableFields,
    check_first,
    check_schemas,
    column_values,
    fields_of,
    has_picture,
    import_pyarrow,
    picture_in_value,
    read_linked_picture,
    row_to_record,
)
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

# The place of a picture; then offset and size, in the index, of the row's captions and score.
_COLUMNS = len(ValuePlace._fields) + 2
# As `size` of a place: the picture can only be read with its row group. Then `offset` is the number
# of the row group, and `skip` the row in it.
_IN_GROUP = -2
# Pages and row groups kept in memory, so that reading in order reads each of them once.
_NUM_KEPT = 2
# Changes when the index holds something else.
_VERSION = 2
_LARGE_BYTES = 16 << 20
# What an index leaves out.
_NULL = "rows without a picture (null)"

logger = logging.getLogger(__name__)


class ParquetRecords:
    """The rows of Parquet files, in the order of the files' names.

    The places of all pictures are looked up once and stored with the captions, see `offsets` and
    `parquet_pages`; this reads the whole set once. Afterwards a picture that is uncompressed or
    compressed with Snappy is read alone, and one with another compression with its page. A layout
    that `parquet_pages` does not support is read with its row group, the least that pyarrow reads.
    A warning is logged if that is much.

    Args:
      config: `path` is a folder with `.parquet` files below it, one file, or a glob. If the names
        of files or folders name splits (see `splits`), only those of `split` are read.

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
        paths = find_files(config.path, ".parquet", "a folder of .parquet files, or a glob")
        paths = choose_files(config, paths, self.folder)
        _check_columns(config, paths)
        indexer = _Indexer(config)
        self._files = load_indices(paths, indexer.kind, _COLUMNS, indexer.index)
        self._skip_rows()
        self._reset()
        check_first(config, self)

    def _skip_rows(self) -> None:
        """Counts what has no picture."""
        bare = [
            index
            for index in self._files.indices
            if index.left_out and not index.length and not _has_pictures(self._config, index.path)
        ]
        nulls = sum(i.left_out.get(_NULL, 0) for i in self._files.indices if i not in bare)
        counts = {
            "rows without a picture (their download failed)": nulls,
            "files without a column of pictures": len(bare),
            "files cannot be read": self._files.unreadable,
        }
        self.skipped = collections.Counter({what: n for what, n in counts.items() if n})

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # Pages by (path, "page", offset) and row groups by (path, "group", number).
        self._kept: collections.OrderedDict[tuple, Any] = collections.OrderedDict()
        self._has_warned = False

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_lock", "_kept", "_has_warned")
        return {k: v for k, v in self.__dict__.items() if k not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def __len__(self) -> int:
        return len(self._files)

    def parts(self) -> Iterator[tuple[str, int]]:
        return self._files.parts(self.folder)

    def stamps(self) -> np.ndarray:
        return self._files.stamps(self.folder, self._config.image_field)

    def head(self, index: int, size: int) -> bytes:
        return self.record(index).image

    def record(self, index: int) -> Record:
        file, row = self._files.locate(index)
        key = f"{file.path.name}[{row}]"
        pa = import_pyarrow()
        try:
            return self._read_row(file, row, key)
        except FileNotFoundError as error:
            raise BadItem(f"{key}: {error}", "shard is gone") from error
        except (OSError, IndexError, pa.ArrowException, ValueError) as error:
            raise BadItem(f"{key}: {error}", "damaged shard") from error

    def _read_row(self, file: Index, row: int, key: str) -> Record:
        *values, offset, size = file.row(row)
        place = ValuePlace(*values)
        if place.size == _IN_GROUP:
            return self._read_from_group(file.path, place, key)
        text = json.loads(file.extra(offset, size))
        folders = [file.path.parent, self.folder]
        if place.size > 0:
            value = self._read_picture(file.path, place)
            image = picture_in_value(value, text["is_text"], folders, key)
        elif text["path"]:
            image = read_linked_picture(folders, text["path"], key)
        else:
            raise BadItem(f"{key} has no picture", "no picture")
        return Record(key, image, tuple(text["captions"]), text["score"])

    def _read_picture(self, path: Path, place: ValuePlace) -> bytes:
        if not is_whole_page(place):
            return read_value(path, place)
        page = self._keep(
            (path, "page", place.offset),
            lambda: read_value(path, place._replace(skip=0, size=place.plain)),
            len,
        )
        return page[place.skip : place.skip + place.size]

    def _read_from_group(self, path: Path, place: ValuePlace, key: str) -> Record:
        table, fields = self._keep(
            (path, "group", place.offset),
            lambda: _read_group(path, place.offset, self._config),
            lambda kept: kept[0].nbytes,
        )
        if place.skip >= table.num_rows:
            raise BadItem(f"{key} does not exist any more", "shard has changed")
        row = table.slice(place.skip, 1)
        return row_to_record(row, key, fields, self._config, [path.parent, self.folder])

    def _keep(self, name: tuple, read: Callable[[], Any], num_bytes: Callable[[Any], int]) -> Any:
        """The page or row group `name`, read only if it is not in memory."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        value = read()
        with self._lock:
            self._kept[name] = value
            while len(self._kept) > _NUM_KEPT:
                self._kept.popitem(last=False)
            warn = num_bytes(value) > _LARGE_BYTES and not self._has_warned
            self._has_warned |= warn
        if warn:
            logger.warning(
                "%s: reading one picture in shuffled order reads %.0f MB, because of the layout of "
                "the files; convert them once with python -m imagen_jax.cli.prepare_data",
                self._config.path,
                num_bytes(value) / 1e6,
            )
        return value


class _Indexer:
    """Builds the index of a file.

    Attributes:
      kind: of the index, see `load_indices`.
    """

    def __init__(self, config: SourceConfig):
        self._config = config
        # The index holds captions and scores, so it is valid for these fields only.
        used = [
            _VERSION,
            config.image_field,
            config.caption_fields,
            config.score_field,
            config.captions,
            config.label_field,
            config.label_names,
            IMAGE_FIELDS,
            CAPTION_FIELDS,
            LABEL_FIELDS,
        ]
        digest = hashlib.blake2b(json.dumps(used).encode(), digest_size=6).hexdigest()
        self.kind = f"parquet-{digest}"

    def index(self, path: Path) -> Table:
        """Scans one file: `[N, 8]`, without the rows that have no picture.

        Raises:
          OSError: it cannot be read.
        """
        pa = import_pyarrow()
        rows: list[tuple[int, ...]] = []
        extra = bytearray()
        left_out = 0
        try:
            with _open(path) as file:
                fields = fields_of(self._config, file.schema_arrow)
                if fields is None:
                    no_rows = np.zeros((0, _COLUMNS), np.int64)
                    return Table(no_rows, {_NULL: file.metadata.num_rows})
                for group in range(file.num_row_groups):
                    try:
                        places = self._places(path, file, group, fields)
                        texts = self._texts(file, group, fields)
                        found = list(zip(places, texts, strict=True))
                    # The row group is damaged or has an unsupported layout. Its rows are read by
                    # pyarrow one at a time, and those that cannot be read are left out then.
                    except (OSError, ValueError, BadItem, KeyError, pa.ArrowException):
                        there = _rows_with_picture(file, group, fields)
                        left_out += file.metadata.row_group(group).num_rows - len(there)
                        rows += [
                            (*ValuePlace(group, 0, 0, row, _IN_GROUP, 0), 0, 0) for row in there
                        ]
                        continue
                    for place, text in found:
                        if place.size <= 0 and not text["path"]:
                            left_out += 1
                            continue
                        data = json.dumps(text, ensure_ascii=False).encode()
                        rows.append((*place, len(extra), len(data)))
                        extra += data
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
        table = np.array(rows, np.int64).reshape(-1, _COLUMNS)
        return Table(table, {_NULL: left_out} if left_out else {}, extra=bytes(extra))

    def _places(
        self, path: Path, file: pyarrow.parquet.ParquetFile, group: int, fields: TableFields
    ) -> list[ValuePlace]:
        metadata = file.metadata.row_group(group)
        for number in range(metadata.num_columns):
            chunk = metadata.column(number)
            if chunk.path_in_schema in (fields.image, f"{fields.image}.bytes"):
                column = file.schema.column(number)
                if column.max_repetition_level:
                    raise UnsupportedLayout("a list of pictures")
                return locate_values(path, chunk, column.max_definition_level)
        raise UnsupportedLayout(f"no column of bytes in {fields.image}")

    def _texts(
        self, file: pyarrow.parquet.ParquetFile, group: int, fields: TableFields
    ) -> list[dict[str, Any]]:
        """For each row: captions, score, and the path of a picture outside the file.

        `is_text` tells whether the picture is base64 or a path.
        """
        names = [name for name in fields.columns if name != fields.image]
        table = file.read_row_group(group, columns=[*names, f"{fields.image}.path"])
        columns = {name: column_values(table.column(name)) for name in table.column_names}
        paths = columns.pop(fields.image, None)
        texts = []
        for row in range(file.metadata.row_group(group).num_rows):
            values = {name: column[row] for name, column in columns.items()}
            texts.append(
                {
                    "captions": fields.captions(values, self._config),
                    "score": score_in_field(values, self._config.score_field),
                    "path": ((paths[row] if paths else None) or {}).get("path"),
                    "is_text": fields.is_text,
                }
            )
        return texts


def _open(path: Path) -> pyarrow.parquet.ParquetFile:
    """An open file. A name that is not UTF-8 is passed as bytes."""
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.OSFile(os.fsencode(path)))


def _read_group(path: Path, group: int, config: SourceConfig) -> tuple[pyarrow.Table, TableFields]:
    with _open(path) as file:
        fields = fields_of(config, file.schema_arrow)
        if fields is None:
            raise ValueError("the column of pictures is gone")
        return file.read_row_group(group, columns=list(fields.columns)), fields


def _rows_with_picture(
    file: pyarrow.parquet.ParquetFile, group: int, fields: TableFields
) -> list[int]:
    """The rows of a group whose picture is not null; all of them if the group is damaged."""
    pa = import_pyarrow()
    try:
        column = file.read_row_group(group, columns=[fields.image]).column(fields.image)
        return np.flatnonzero(has_picture(column).to_numpy()).tolist()
    except (OSError, ValueError, pa.ArrowException):
        return list(range(file.metadata.row_group(group).num_rows))


def _schema(path: Path) -> pyarrow.Schema | None:
    """The columns of a file, None if it cannot be read."""
    pa = import_pyarrow()
    try:
        with _open(path) as file:
            return file.schema_arrow
    except (OSError, pa.ArrowException):
        return None


def _has_pictures(config: SourceConfig, path: Path) -> bool:
    schema = _schema(path)
    return schema is not None and fields_of(config, schema) is not None


def _check_columns(config: SourceConfig, paths: list[Path]) -> None:
    """Raises UserError if all files together lack a column that is needed.

    Mostly the first file has them all, so that no other is opened.
    """
    schemas: list[pyarrow.Schema] = []
    missing = None
    for path in paths:
        schema = _schema(path)
        if schema is None or schema in schemas:
            continue
        schemas.append(schema)
        try:
            check_schemas(config, schemas)
            return
        except UserError as error:
            missing = error
    if missing is not None:
        raise missing
