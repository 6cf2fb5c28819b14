"""Rows of Arrow tables as records: what the Arrow and Parquet formats share."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import (
    CAPTION_FIELDS,
    captions_in_fields,
    check_fields,
    choose_image_field,
    find_image_field,
    score_in_field,
)
from imagen_jax.data.formats.labels import (
    LABEL_FIELDS,
    choose_label_field,
    hugging_face_names,
    label_captions,
)
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow

# Text that may be base64.
_BASE64 = re.compile(
    rb"\s*(?P<address>data:image/[\w.+-]+;base64,)?(?P<data>[A-Za-z0-9+/_\s-]{16,})={0,2}\s*"
)
# How pictures begin. Names of files and other texts are letters of base64, too.
_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*|P[1-6]\s|....ftyp", re.DOTALL
)
ADDRESS = "picture is a web address"
GONE = "file is gone"


@dataclasses.dataclass(frozen=True)
class TableFields:
    """Which columns of a table are read, and how.

    Attributes:
      image: the column of the pictures.
      is_text: whether it holds text: paths of picture files, or base64.
      columns: all columns that may hold the picture, captions or score.
      label_names: the names of the classes.
    """

    image: str
    is_text: bool
    columns: tuple[str, ...]
    label_names: tuple[str, ...]

    def captions(self, values: Mapping[str, Any], config: SourceConfig) -> tuple[str, ...]:
        """The captions in the other columns of a row."""
        if config.captions == "none":
            return ("",)
        if config.captions == "labels":
            return tuple(label_captions(values, config, self.label_names))
        return captions_in_fields(values, config.caption_fields)


def fields_of(config: SourceConfig, schema: pyarrow.Schema) -> TableFields | None:
    """The fields of a table; None if it has no column of pictures.

    Raises:
      UserError: the column is of a type that holds no picture.
    """
    image = find_image_field(config, schema.names)
    if not image:
        return None
    if schema.names.count(image) > 1:
        raise UserError(_twice(config, image))
    kind = schema.field(image).type
    check_image_type(config, image, kind)
    named = {config.score_field, *config.caption_fields}
    names = config.label_names
    if config.captions == "labels":
        labels = (config.label_field,) if config.label_field else LABEL_FIELDS
        named |= set(labels)
        found = next((label for label in labels if label.split("/")[0] in schema.names), "")
        names = names or hugging_face_names(schema.metadata, found)
    elif config.captions == "text" and not config.caption_fields:
        named |= set(CAPTION_FIELDS)
    used = {image, *(field.split("/")[0] for field in named)}
    columns = tuple(name for name in schema.names if name in used)
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UserError(_twice(config, twice[0]))
    return TableFields(image, _is_text(kind), columns, names)


def _twice(config: SourceConfig, name: str) -> str:
    return (
        f"config.data.path={config.path} has several columns {name}: rename all but one of them, "
        "or name other columns in config.data"
    )


def check_schemas(config: SourceConfig, schemas: list[pyarrow.Schema]) -> None:
    """Raises UserError if no table of a set has a column that the config needs.

    Tables may have different columns. A column is missing only if all of them lack it.
    """
    names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    if names == ["indices"]:
        raise UserError(
            f"config.data.path={config.path} holds the row numbers of a filtered set, and not its "
            "pictures; load the set with datasets, and save it with save_to_disk"
        )
    choose_image_field(config, names)
    check_fields(config, names)
    if config.captions == "labels":
        field = choose_label_field(config, names)
        for schema in schemas:
            _check_label_names(config, schema, field)


def _check_label_names(config: SourceConfig, schema: pyarrow.Schema, field: str) -> None:
    """Raises UserError if the labels of a table are numbers whose names are unknown."""
    pa = import_pyarrow()
    if "/" in field or field not in schema.names or config.label_names:
        return
    kind = _item_type(schema.field(field).type)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if is_number and not hugging_face_names(schema.metadata, field):
        raise UserError(
            f"config.data.path={config.path}: column {field} holds numbers, and the set does not "
            "name its classes; set config.data.label_names to their names, in order"
        )


def check_image_type(config: SourceConfig, field: str, kind: pyarrow.DataType) -> None:
    """Raises UserError if a column of this type cannot hold pictures."""
    pa = import_pyarrow()
    if pa.types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        is_known = bool(names & {"bytes", "path"})
    else:
        is_bytes = _is_list(kind) and pa.types.is_integer(kind.value_type)
        # Of a file whose downloads all failed, the type is unknown.
        is_known = is_bytes or _is_text(kind) or _is_binary(kind) or pa.types.is_null(kind)
    if not is_known:
        raise UserError(
            f"config.data.path={config.path}: column {field} is of type {kind}; a picture is "
            "an encoded file (binary, list<uint8>, base64), the path of one, or a struct of bytes "
            "and path. Set config.data.image_field to another column, or encode the pictures as "
            "PNG"
        )


def check_first(config: SourceConfig, records: Any) -> None:
    """Raises UserError if the first picture of a set is only a web address."""
    try:
        if len(records):
            records.record(0)
    except BadItem as error:
        if error.kind == ADDRESS:
            raise UserError(
                f"config.data.path={config.path} holds the addresses of its pictures ({error}); "
                "the program downloads nothing. Download them with img2dataset first, or set "
                "config.data.image_field to a column of pictures"
            ) from error


def _is_list(kind: pyarrow.DataType) -> bool:
    types = import_pyarrow().types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _item_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _is_text(kind: pyarrow.DataType) -> bool:
    types = import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: pyarrow.DataType) -> bool:
    types = import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def has_picture(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """`[N]` booleans: whether each row has a picture or the path of one, not null and not empty."""
    import pyarrow.compute as pc

    pa = import_pyarrow()
    if not pa.types.is_struct(column.type):
        return _is_filled(column)
    names = [column.type.field(i).name for i in range(column.type.num_fields)]
    there = [_is_filled(pc.struct_field(column, n)) for n in names if n in ("bytes", "path")]
    return pc.or_(*there) if len(there) == 2 else there[0]


def _is_filled(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    import pyarrow.compute as pc

    types = import_pyarrow().types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_binary_view(column.type) or types.is_string_view(column.type):
        return pc.is_valid(column)  # without a kernel for lengths
    if _is_text(column.type) or _is_binary(column.type):
        return pc.fill_null(pc.greater(pc.binary_length(column), 0), False)
    if _is_list(column.type):
        return pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)
    return pc.is_valid(column)


def row_to_record(
    row: pyarrow.Table, key: str, fields: TableFields, config: SourceConfig, folders: list[Path]
) -> Record:
    """The record in a table of one row.

    Args:
      row: the table.
      key: of the record.
      fields: of the table.
      config: names the fields of captions and score.
      folders: that paths of pictures may be relative to.

    Raises:
      BadItem: the row has no picture, or text that cannot be read.
    """
    columns = {}
    for name, column in zip(row.column_names, row.columns, strict=True):
        try:
            columns[name] = column_values(column)[0]
        except UnicodeDecodeError as error:
            raise BadItem(f"{key}: column {name}: {error}", "text is not UTF-8") from error
    image = columns.pop(fields.image)
    if isinstance(image, dict):
        path, image = image.get("path"), image.get("bytes")
        if not image and path:
            image = read_linked_picture(folders, path, key)
    return Record(
        key=key,
        image=picture_in_value(image, fields.is_text, folders, key),
        captions=fields.captions(columns, config),
        score=score_in_field(columns, config.score_field),
    )


def picture_in_value(value: Any, is_text: bool, folders: list[Path], key: str) -> bytes:
    """The bytes of the picture file that a value of a column holds or names.

    Args:
      value: the file as bytes, as base64 or as a list of integers, or its path.
      is_text: whether bytes are the text of a string.
      folders: that a path may be relative to.
      key: of the record.

    Raises:
      BadItem: there is no picture.
    """
    if isinstance(value, str):
        value, is_text = value.encode("utf-8", "surrogateescape"), True
    if isinstance(value, list):
        try:
            value = bytes(value)
        except (ValueError, TypeError) as error:
            raise BadItem(f"{key}: {error}", "no picture") from error
    if not isinstance(value, bytes):
        raise BadItem(f"{key} has no picture", "no picture")
    encoded = _BASE64.fullmatch(value)
    if encoded and (picture := _decode_base64(encoded)):
        return picture
    if not is_text:
        return value
    try:
        return read_linked_picture(folders, os.fsdecode(value), key)
    except BadItem as error:
        if encoded and error.kind == GONE:
            raise BadItem(
                f"{key}: {value[:50]!r} is no picture in base64 and no name of a file",
                "damaged base64",
            ) from error
        raise


def _decode_base64(encoded: re.Match[bytes]) -> bytes:
    """The picture file in a text of base64; empty if it holds anything else."""
    letters = encoded["data"].translate(bytes.maketrans(b"-_", b"+/"))
    try:
        decoded = base64.b64decode(letters + b"==")
    except binascii.Error:
        return b""
    return decoded if encoded["address"] or _PICTURE.match(decoded) else b""


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


def read_linked_picture(folders: list[Path], path: str, key: str) -> bytes:
    """The picture file that a row names instead of holding it.

    Args:
      folders: that the path may be relative to.
      path: of the file. Its accents may be composed otherwise than in the file system.
      key: of the record.

    Raises:
      BadItem: there is no such file, or it cannot be read.
    """
    if "://" in path:
        raise BadItem(f"{key}: {path[:200]}", ADDRESS)
    names = dict.fromkeys((path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))))
    for file in (folder / name for folder in folders for name in names):
        try:
            # A device or a pipe might never end.
            if stat.S_ISREG(os.stat(file).st_mode):
                return file.read_bytes()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise BadItem(f"{key}: {error}", "file cannot be read") from error
    raise BadItem(f"{key}: there is no file {path[:200]} in {folders[0]}", GONE)
