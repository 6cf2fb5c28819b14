"""Directories that TensorFlow Datasets has prepared, read at random without TensorFlow."""

from __future__ import annotations

import bisect
import collections
import itertools
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import captions_in_fields, choose_image_field, score_in_field
from imagen_jax.data.formats.files import file_stamp, home_of, stamp
from imagen_jax.data.formats.offsets import Table, load_indices, read_range
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

# Offset and size of a record.
_COLUMNS = 2


class TfdsRecords:
    """The examples of one split.

    ArrayRecord and Parquet files are read by `as_data_source`; TFRecord files, which most prepared
    directories have, through a stored index of offsets.

    Args:
      config: `path` is the directory of a version, with `dataset_info.json` in it (such as
        ~/tensorflow_datasets/coco_captions/2014/1.1.0); `split` is in TFDS's language
        ("train+restval", also "train[:1000]" where the files are not TFRecord).

    Attributes:
      home: see `Records`.
      skipped: files that are cut short or unreadable.

    Raises:
      UserError: it is no such directory, or has not the split or features asked for;
        tensorflow-datasets is not installed.
    """

    def __init__(self, config: SourceConfig):
        tfds = import_tfds()
        directory = os.path.expanduser(config.path)
        if not os.path.isfile(os.path.join(directory, "dataset_info.json")):
            raise UserError(
                f"config.data.path={config.path} has no dataset_info.json; set it to the "
                "directory of a version, such as ~/tensorflow_datasets/coco_captions/2014/1.1.0"
            )
        builder = tfds.builder_from_directory(directory)
        self.home = home_of(config.path)
        self._init(config, builder)

    def _init(self, config: SourceConfig, builder: Any) -> None:
        self._config = config
        self._features = builder.info.features
        self._field = choose_image_field(config, self._features)
        self._raw = {self._field: import_tfds().decode.SkipDecoding()}
        self.skipped: collections.Counter[str] = collections.Counter()
        self._source = self._tfrecords = None
        try:
            if builder.info.file_format.value == "tfrecord":
                self._tfrecords = _TfRecords(_files_of(builder, config.split))
                if self._tfrecords.num_damaged:
                    self.skipped["files cut short or unreadable"] = self._tfrecords.num_damaged
            else:
                self._source = builder.as_data_source(config.split, decoders=self._raw)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"config.data.split={config.split!r} of {config.path}: {error}; it has "
                f"{', '.join(builder.info.splits)}"
            ) from error

    def __len__(self) -> int:
        return len(self._source if self._tfrecords is None else self._tfrecords)

    def stamps(self) -> np.ndarray:
        if self._tfrecords is not None:
            parts = self._tfrecords.parts(self.home)
        else:
            # Which file an example lies in only the reader knows.
            files = sorted(path for path in self.home.iterdir() if path.is_file())
            text = " ".join([self._config.split, *(file_stamp(file, self.home) for file in files)])
            parts = [(text, len(self))]
        return stamp((f"{self._field} {text}", count) for text, count in parts)

    def record(self, index: int) -> Record:
        key = f"{self._config.split}[{index}]"
        if self._tfrecords is not None:
            data = self._tfrecords.read(index)
        try:
            if self._tfrecords is None:
                example = self._source[index]
            else:
                example = self._features.deserialize_example_np(data, decoders=self._raw)
        # Readers of several formats and protobuf, each with its own errors.
        except Exception as error:
            raise BadItem(f"{key}: {type(error).__name__}: {error}", "damaged record") from error
        image = example[self._field]
        if not isinstance(image, bytes):
            raise BadItem(f"{key}: feature {self._field} is no encoded picture", "no picture")
        return Record(
            key=key,
            image=image,
            captions=captions_in_fields(example, self._config.caption_fields),
            score=score_in_field(example, self._config.score_field),
        )


class _TfRecords:
    """The records of TFRecord files at random: length, its checksum, data, its checksum."""

    def __init__(self, paths: list[Path]):
        self._indices, unreadable = load_indices(paths, "tfrecord", _COLUMNS, index_tfrecord)
        self._ends = list(itertools.accumulate(index.length for index in self._indices))
        self.num_damaged = unreadable + sum(index.is_cut for index in self._indices)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def parts(self, home: Path) -> list[tuple[str, int]]:
        return [(file_stamp(index.path, home), index.length) for index in self._indices]

    def read(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        shard = self._indices[number]
        offset, size = shard.row(index - (self._ends[number] - shard.length))
        return read_range(shard.path, offset, size)


def index_tfrecord(path: Path) -> Table:
    """Looks through one file: `[N, 2]`, offset and size of the data."""
    size, position, rows = os.stat(path).st_size, 0, []
    with open(path, "rb") as file:
        while position + 12 <= size:
            file.seek(position)
            (length,) = struct.unpack("<Q", file.read(8))
            if position + 16 + length > size:
                break
            rows.append((position + 12, length))
            position += 16 + length
    return Table(np.array(rows, np.int64).reshape(-1, _COLUMNS), is_cut=position != size)


def import_tfds() -> Any:
    """The module. Raises UserError if it is not installed."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "this source needs tensorflow-datasets: pip install 'imagen-jax[data]' (or pip "
            "install tensorflow-datasets); TensorFlow is not needed"
        ) from error
    return tensorflow_datasets


def _files_of(builder: Any, split: str) -> list[Path]:
    if "[" in split:
        raise ValueError("parts of a split can only be read from ArrayRecord files")
    names = [name.strip() for name in split.split("+")]
    return [Path(path) for name in names for path in builder.info.splits[name].filepaths]
