"""Parquet files with the pictures in them, such as img2dataset and Hugging Face write."""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
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
from imagen_jax.data.formats.files import find_files, folder_of
from imagen_jax.data.formats.offsets import Index, Table, load_indices
from imagen_jax.data.formats.parquet_pages import (
    UnsupportedLayout,
    ValuePlace,
    is_whole_page,
    locate_values,
    read_value,
)
from imagen_jax.data.formats.tables import (
    column_values,
    import_pyarrow,
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
_LARGE_BYTES = 16 << 20

logger = logging.getLogger(__name__)


class ParquetRecords:
    """The rows of Parquet files, in the order of the files' names.

    The places of all pictures are looked up once and stored with the captions, see `offsets` and
    `parquet_pages`; this reads the whole set once. Afterwards a picture that is uncompressed or
    compressed with Snappy is read alone, and one with another compression with its page. A layout
    that `parquet_pages` does not support is read with its row group, the least that pyarrow reads.
    A warning is logged if that is much.

    Args:
      config: `path` is a folder with `.parquet` files below it, one file, or a glob. If some of the
        file names begin with `split` and a "-" (as Hugging Face names them), only those are read.

    Attributes:
      folder: see `Records`.
      skipped: files that cannot be read.

    Raises:
      UserError: there are no files, or they lack a column that the config names; pyarrow is not
        installed.
    """

    def __init__(self, config: SourceConfig):
        import_pyarrow()
        self._config = config
        self.folder = folder_of(config.path)
        paths = find_files(config.path, ".parquet", "a folder of .parquet files, or a glob")
        if of_split := [path for path in paths if path.name.startswith(f"{config.split}-")]:
            paths = of_split
        names = _column_names(paths)
        self._field, self._columns = "", []
        if names is not None:
            self._field = choose_image_field(config, names)
            self._columns = _needed_columns(config, names, self._field)
        indexer = _Indexer(self._field, tuple(self._columns), config)
        self._files = load_indices(paths, indexer.kind, _COLUMNS, indexer.index)
        self.skipped: collections.Counter[str] = collections.Counter()
        if self._files.unreadable:
            self.skipped["files cannot be read"] = self._files.unreadable
        self._reset()

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
        return self._files.stamps(self.folder, self._field)

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
        if place.size >= 0:
            image = self._read_picture(file.path, place)
        elif text["path"]:
            image = read_linked_picture(file.path.parent, text["path"], key)
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
        table = self._keep(
            (path, "group", place.offset),
            lambda: _read_group(path, place.offset, self._columns),
            lambda table: table.nbytes,
        )
        if place.skip >= table.num_rows:
            raise BadItem(f"{key} does not exist any more", "shard has changed")
        row = table.slice(place.skip, 1)
        return row_to_record(row, key, self._field, self._config, path.parent)

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

    def __init__(self, field: str, columns: tuple[str, ...], config: SourceConfig):
        self._field = field
        self._columns = columns
        self._caption_fields = config.caption_fields
        self._score_field = config.score_field
        # The index holds captions and scores, so it is valid for these fields only.
        used = [field, columns, config.caption_fields, config.score_field, CAPTION_FIELDS]
        digest = hashlib.blake2b(json.dumps(used).encode(), digest_size=6).hexdigest()
        self.kind = f"parquet-{digest}"

    def index(self, path: Path) -> Table:
        """Scans one file: `[N, 8]`. Raises OSError if it cannot be read."""
        pa = import_pyarrow()
        import pyarrow.parquet as pq

        rows: list[tuple[int, ...]] = []
        extra = bytearray()
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    try:
                        places = self._places(path, file, group)
                        texts = self._texts(file, group)
                        found = list(zip(places, texts, strict=True))
                    # The row group is damaged or has an unsupported layout. Its rows are read by
                    # pyarrow one at a time, and those that cannot be read are left out then.
                    except (OSError, ValueError, BadItem, KeyError, pa.ArrowException):
                        for row in range(file.metadata.row_group(group).num_rows):
                            rows.append((*ValuePlace(group, 0, 0, row, _IN_GROUP, 0), 0, 0))
                        continue
                    for place, text in found:
                        rows.append((*place, len(extra), len(text)))
                        extra += text
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
        return Table(np.array(rows, np.int64).reshape(-1, _COLUMNS), extra=bytes(extra))

    def _places(
        self, path: Path, file: pyarrow.parquet.ParquetFile, group: int
    ) -> list[ValuePlace]:
        metadata = file.metadata.row_group(group)
        for number in range(metadata.num_columns):
            chunk = metadata.column(number)
            if chunk.path_in_schema in (self._field, f"{self._field}.bytes"):
                column = file.schema.column(number)
                if column.max_repetition_level:
                    raise UnsupportedLayout("a list of pictures")
                return locate_values(path, chunk, column.max_definition_level)
        raise UnsupportedLayout(f"no column of bytes in {self._field}")

    def _texts(self, file: pyarrow.parquet.ParquetFile, group: int) -> list[bytes]:
        """For each row, as JSON: captions, score, and the path of a picture outside the file."""
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


def _column_names(paths: list[Path]) -> list[str] | None:
    """The columns of the first file that can be read, None if there is no such file."""
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    for path in paths:
        try:
            return pq.read_schema(path).names
        except (OSError, pa.ArrowException):
            continue
    return None


def _needed_columns(config: SourceConfig, columns: list[str], image_field: str) -> list[str]:
    """The columns that may hold the picture, the captions or the score."""
    named = [field.split("/")[0] for field in (*config.caption_fields, config.score_field) if field]
    for field in named:
        if field not in columns:
            raise UserError(
                f"config.data.path={config.path} has no column {field}; it has {', '.join(columns)}"
            )
    if not config.caption_fields:
        named += [field.split("/")[0] for field in CAPTION_FIELDS]
    return [name for name in columns if name == image_field or name in named]
