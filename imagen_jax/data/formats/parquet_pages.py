"""Finds each value of a Parquet column in its file, so that it can be read without the others.

A column chunk is a sequence of pages. A page is compressed as a whole and holds up to thousands of
pictures. Snappy, which nearly all writers of Parquet use, compresses blocks of 64 KiB
independently, and a run of such blocks with its length in front is a valid Snappy stream.
Therefore:

- from an uncompressed page, only the picture is read;
- from a page with Snappy, only the blocks that contain the picture;
- from a page with another compression, the whole page.

Layouts and constants come from the Parquet format and from Snappy's format_description.txt.

Measured on 256x256 JPEGs in shuffled order, against pyarrow reading row groups and keeping the last
two (`python -m benchmarks.parquet_pages`, two cores, medians of five alternating rounds): 1.98
[1.88, 2.91] times as many pictures a second with row groups of 100, 8.23 [7.69, 9.19] times with
row groups of 1000.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.data.formats.files import read_range

CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "BROTLI")
# Bytes of an uncompressed Snappy block.
_BLOCK = 1 << 16
# Types of pages: data of the first format, a dictionary, data of the second format.
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
# Encodings of values.
_PLAIN, _DICTIONARY_ENCODINGS = 0, (2, 8)


class UnsupportedLayout(ValueError):
    """The column is damaged, or stored in a way that this module does not read."""


class ValuePlace(NamedTuple):
    """Where one value lies: in a piece of the file, which has to be decompressed.

    Attributes:
      offset: of the piece in the file.
      stored: bytes of the piece in the file.
      plain: bytes of the piece after decompression.
      skip: bytes before the value in the decompressed piece.
      size: bytes of the value; -1 for a null.
      codec: index of the compression in CODECS.
    """

    offset: int
    stored: int
    plain: int
    skip: int
    size: int
    codec: int


NULL = ValuePlace(0, 0, 0, 0, -1, 0)


def read_value(path: Path, place: ValuePlace) -> bytes:
    """Reads a value that is not null.

    Raises:
      BadItem: the file is gone or has become shorter.
      OSError, ArrowException: the contents of the file have changed.
    """
    if place.size == 0:
        return b""
    piece = read_range(path, place.offset, place.stored)
    plain = _decompress(piece, place.plain, CODECS[place.codec])
    return plain[place.skip : place.skip + place.size]


def is_whole_page(place: ValuePlace) -> bool:
    """Whether the piece is a whole page, which also holds other values."""
    return CODECS[place.codec] not in ("UNCOMPRESSED", "SNAPPY")


def locate_values(path: Path, chunk: Any, max_definition_level: int) -> list[ValuePlace]:
    """The places of all values in a column chunk of byte arrays that are not repeated.

    Args:
      path: of the file.
      chunk: pyarrow's ColumnChunkMetaData.
      max_definition_level: of the column: how many of it and its parents can be null.

    Raises:
      UnsupportedLayout: the chunk is damaged or stored in an unsupported way.
      BadItem: the file ends before the chunk does.
    """
    if chunk.compression not in CODECS:
        raise UnsupportedLayout(f"compression {chunk.compression}")
    if chunk.physical_type != "BYTE_ARRAY":
        raise UnsupportedLayout(f"type {chunk.physical_type}")
    position = chunk.data_page_offset
    if chunk.has_dictionary_page:
        position = min(position, chunk.dictionary_page_offset or position)
    end = position + chunk.total_compressed_size
    dictionary: list[ValuePlace] = []
    places: list[ValuePlace] = []
    try:
        while position < end and len(places) < chunk.num_values:
            header, start = _read_header(path, position, end)
            position = start + header.stored
            if header.kind not in (_DATA, _DICTIONARY, _DATA_2):
                continue
            if not 0 <= header.num_values <= chunk.num_values:
                raise UnsupportedLayout(f"a page of {header.num_values} values")
            page = _Page(path, start, header, chunk.compression)
            if header.kind == _DICTIONARY:
                dictionary = page.plain_values(0, header.num_values)
            else:
                places += page.values(dictionary, max_definition_level)
    except (IndexError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise UnsupportedLayout(f"damaged page: {error!r}") from error
    if len(places) != chunk.num_values:
        raise UnsupportedLayout(f"{len(places)} of {chunk.num_values} values")
    return places


@dataclasses.dataclass(frozen=True)
class _Header:
    """Header of a page.

    Attributes:
      kind: type of the page.
      plain, stored: bytes after and before decompression, without the header.
      num_values: values in the page, nulls included.
      encoding: of the values.
      repetition_bytes, definition_bytes: of the levels in front of the compressed part; 0 in the
        first format, which compresses the levels too.
      is_compressed: whether the page is compressed.
    """

    kind: int
    plain: int
    stored: int
    num_values: int
    encoding: int
    repetition_bytes: int = 0
    definition_bytes: int = 0
    is_compressed: bool = True


class _Page:
    """One page, decompressed."""

    def __init__(self, path: Path, start: int, header: _Header, compression: str):
        levels = header.repetition_bytes + header.definition_bytes
        data = read_range(path, start, header.stored)
        self._header = header
        self._levels = data[header.repetition_bytes : levels]
        self._stored = data[levels:]
        self._start = start + levels
        # The second format does not compress pages that would not become smaller.
        self._codec = CODECS.index(compression if header.is_compressed else CODECS[0])
        size = header.plain - levels
        self._blocks: list[int] = []
        if CODECS[self._codec] == "SNAPPY":
            length, behind = _read_varint(self._stored, 0)
            if length != size:
                raise UnsupportedLayout(f"a page of {length} bytes, not {size}")
            self._stored, self._start = self._stored[behind:], self._start + behind
            self._blocks = _snappy_blocks(self._stored)
        self._plain = _decompress(self._stored, size, CODECS[self._codec])

    def values(self, dictionary: list[ValuePlace], max_definition_level: int) -> list[ValuePlace]:
        """The places of the values of a data page."""
        header, at = self._header, 0
        levels = self._levels
        if max_definition_level and header.kind == _DATA:
            (size,) = struct.unpack_from("<I", self._plain)
            levels, at = self._plain[4 : 4 + size], 4 + size
        is_there = np.ones(header.num_values, bool)
        if max_definition_level:
            width = max_definition_level.bit_length()
            is_there = _hybrid(levels, width, header.num_values) == max_definition_level
        count = int(is_there.sum())
        if header.encoding == _PLAIN:
            found = self.plain_values(at, count)
        elif header.encoding in _DICTIONARY_ENCODINGS:
            indices = _hybrid(self._plain[at + 1 :], self._plain[at], count) if count else []
            found = [dictionary[index] for index in indices]
        else:
            raise UnsupportedLayout(f"encoding {header.encoding}")
        if count == header.num_values:
            return found
        rest = iter(found)
        return [next(rest) if there else NULL for there in is_there]

    def plain_values(self, at: int, count: int) -> list[ValuePlace]:
        """The places of `count` values from byte `at`; each value has its length in front."""
        places = []
        for _ in range(count):
            (size,) = struct.unpack_from("<I", self._plain, at)
            at += 4
            if at + size > len(self._plain):
                raise UnsupportedLayout("a value ends after its page")
            places.append(self._place(at, size))
            at += size
        return places

    def _place(self, at: int, size: int) -> ValuePlace:
        plain, stored = len(self._plain), len(self._stored)
        if CODECS[self._codec] == "UNCOMPRESSED":
            return ValuePlace(self._start + at, size, size, 0, size, self._codec)
        if len(self._blocks) < 2 or size == 0:
            return ValuePlace(self._start, stored, plain, at, size, self._codec)
        first, last = at // _BLOCK, -(-(at + size) // _BLOCK)
        begin = self._blocks[first]
        end = self._blocks[last] if last < len(self._blocks) else stored
        return ValuePlace(
            offset=self._start + begin,
            stored=end - begin,
            plain=min(last * _BLOCK, plain) - first * _BLOCK,
            skip=at - first * _BLOCK,
            size=size,
            codec=self._codec,
        )


def _decompress(stored: bytes, plain: int, codec: str) -> bytes:
    if codec == "UNCOMPRESSED":
        return stored
    import pyarrow as pa

    if codec == "SNAPPY":
        stored = _to_varint(plain) + stored
    return pa.decompress(stored, plain, codec.lower(), asbytes=True)


def _snappy_blocks(data: bytes) -> list[int]:
    """The offset of each block of 64 KiB in a Snappy stream without its length.

    Returns an empty list if the blocks are not independent: an element spans two blocks, or copies
    from an earlier block. The format allows this, but Snappy's own compressor does not do it.
    """
    blocks, position, plain = [], 0, 0
    while position < len(data):
        within = plain % _BLOCK
        if within == 0:
            blocks.append(position)
        tag = data[position]
        kind, size = tag & 3, (tag >> 2) + 1
        if kind == 0:  # a literal
            position += 1
            if size > 60:
                width = size - 60
                size = int.from_bytes(data[position : position + width], "little") + 1
                position += width
            position += size
            distance = 0
        elif kind == 1:
            size, distance = 4 + (tag >> 2 & 7), tag >> 5 << 8 | data[position + 1]
            position += 2
        else:
            width = 2 if kind == 2 else 4
            distance = int.from_bytes(data[position + 1 : position + 1 + width], "little")
            position += 1 + width
        if distance > within or within + size > _BLOCK:
            return []
        plain += size
    return blocks


def _hybrid(data: bytes, width: int, count: int) -> np.ndarray:
    """Decodes Parquet's mix of run-length encoded and bit-packed numbers: `[count]` int64."""
    parts, position, left = [], 0, count
    while left > 0:
        head, position = _read_varint(data, position)
        if head & 1:
            size = (head >> 1) * 8
            packed = np.frombuffer(data, np.uint8, (head >> 1) * width, position)
            bits = np.unpackbits(packed, bitorder="little").reshape(size, width)
            run = bits.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
            position += packed.size
        else:
            size, bytes_each = head >> 1, -(-width // 8)
            if position + bytes_each > len(data) or size == 0:
                raise UnsupportedLayout("a run ends after its page")
            value = int.from_bytes(data[position : position + bytes_each], "little")
            run = np.full(min(size, left), value, np.int64)
            position += bytes_each
        parts.append(run[:left])
        left -= size
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


# --- page headers: structs in Thrift's compact protocol ----------------------------------------


def _read_header(path: Path, position: int, end: int) -> tuple[_Header, int]:
    """The header at a position, and the position after it, where the page begins."""
    size = 256
    while True:
        size = min(size, end - position)
        data = read_range(path, position, size)
        try:
            values, length = _read_struct(data, 0)
            break
        except IndexError:
            # Statistics can make a header long.
            if size == end - position:
                raise
            size *= 16
    # The numbers are those of the fields of PageHeader in parquet.thrift.
    kind, plain, stored = values[1], values[2], values[3]
    if min(plain, stored) < 0 or position + length + stored > end:
        raise UnsupportedLayout("a page ends after its column")
    if kind == _DATA_2:
        own = values[8]
        header = _Header(
            kind,
            plain,
            stored,
            num_values=own[1],
            encoding=own[4],
            repetition_bytes=own[6],
            definition_bytes=own[5],
            is_compressed=bool(own.get(7, True)),
        )
    elif kind in (_DATA, _DICTIONARY):
        own = values[5 if kind == _DATA else 7]
        header = _Header(kind, plain, stored, num_values=own[1], encoding=own[2])
    else:
        header = _Header(kind, plain, stored, num_values=0, encoding=0)
    return header, position + length


def _read_struct(data: bytes, position: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and the position after it."""
    values: dict[int, Any] = {}
    number = 0
    while kind := data[position] & 15:
        step = data[position] >> 4
        position += 1
        if step:
            number += step
        else:
            number, position = _read_integer(data, position)
        values[number], position = _read_value(data, position, kind)
    return values, position + 1


def _read_value(data: bytes, position: int, kind: int) -> tuple[Any, int]:
    """A value of the given Thrift type (None for a string), and the position after it."""
    if kind in (1, 2):  # a boolean
        return kind == 1, position
    if kind == 3:  # a byte
        return data[position], position + 1
    if kind in (4, 5, 6):
        return _read_integer(data, position)
    if kind == 8:  # a string
        size, position = _read_varint(data, position)
        # If this is after the end of `data`, reading the next byte raises IndexError.
        return None, position + size
    if kind == 12:  # a struct
        return _read_struct(data, position)
    raise UnsupportedLayout(f"Thrift type {kind} in a page header")


def _read_integer(data: bytes, position: int) -> tuple[int, int]:
    value, position = _read_varint(data, position)
    return value >> 1 ^ -(value & 1), position


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
