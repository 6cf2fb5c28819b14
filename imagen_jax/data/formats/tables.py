"""Rows of Arrow tables as records: what the Arrow and Parquet formats share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import captions_in_fields, score_in_field
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow


def row_to_record(
    row: pyarrow.Table, key: str, image_field: str, config: SourceConfig, folder: Path
) -> Record:
    """The record in a table of one row. A picture is bytes, or a struct of `bytes` and `path`.

    Args:
      row: the table.
      key: of the record.
      image_field: the column of the picture.
      config: names the fields of captions and score.
      folder: that paths of pictures are relative to.

    Raises:
      BadItem: the row has no picture, or text that cannot be read.
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
            image = read_linked_picture(folder, path, key)
    if not isinstance(image, bytes):
        raise BadItem(f"{key} has no picture", "no picture")
    return Record(
        key=key,
        image=image,
        captions=captions_in_fields(columns, config.caption_fields),
        score=score_in_field(columns, config.score_field),
    )


def import_pyarrow() -> Any:
    """The module `pyarrow`. Raises UserError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise UserError(
            "this source needs pyarrow: pip install 'imagen-jax[data]' (or pip install pyarrow)"
        ) from error
    return pyarrow


def column_values(column: pyarrow.ChunkedArray) -> list[Any]:
    """A column as Python objects. Strings become bytes, because they may not be valid UTF-8.

    Raises:
      UnicodeDecodeError: a string within a list or a struct is not valid UTF-8.
    """
    pa = import_pyarrow()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        column = column.cast(binary)
    return column.to_pylist()


def read_linked_picture(folder: Path, path: str, key: str) -> bytes:
    """The picture file that a row names instead of holding it. Raises BadItem."""
    try:
        return (folder / path).read_bytes()
    except OSError as error:
        raise BadItem(f"{key}: {error}", "file is gone") from error
