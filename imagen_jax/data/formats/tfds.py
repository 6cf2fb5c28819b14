"""Directories that TensorFlow Datasets has prepared, read at random without TensorFlow."""

from __future__ import annotations

import collections
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config import SourceConfig
from imagen_jax.data.formats.fields import (
    captions_in_fields,
    check_fields,
    choose_image_field,
    score_in_field,
)
from imagen_jax.data.formats.files import (
    file_stamp,
    folder_of,
    name_and_size,
    read_range,
    record_stamps,
)
from imagen_jax.data.formats.labels import choose_label_field, label_captions
from imagen_jax.data.formats.offsets import IndexedFiles, Table, load_indices
from imagen_jax.data.records import Record
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

# Offset and size of a record.
_COLUMNS = 2


class TfdsRecords:
    """The examples of one split.

    ArrayRecord and Parquet files are read by `as_data_source`. TFRecord files, which most prepared
    directories have, are read through a stored index of offsets.

    Args:
      config: `path` is the directory of a version, with `dataset_info.json` in it (such as
        ~/tensorflow_datasets/coco_captions/2014/1.1.0); `split` is written as in TFDS
        ("train+restval"; "train[:1000]" only if the files are not TFRecord).

    Attributes:
      folder: see `Records`.
      skipped: files that are cut short or unreadable.

    Raises:
      UserError: the directory is not one of TFDS, or lacks the split or the picture feature;
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
        self.folder = folder_of(config.path)
        self._config = config
        self._features = builder.info.features
        self._field = choose_image_field(config, self._features)
        check_fields(config, self._features)
        self._label_names = _label_names(config, self._features)
        # The picture stays encoded.
        self._decoders = {self._field: tfds.decode.SkipDecoding()}
        self.skipped: collections.Counter[str] = collections.Counter()
        # One of the two is None.
        self._source: Any = None
        self._files: IndexedFiles | None = None
        try:
            if builder.info.file_format.value == "tfrecord":
                paths = _files_of(builder, config.split)
                self._files = load_indices(paths, "tfrecord", _COLUMNS, index_tfrecord)
                if damaged := self._files.unreadable + self._files.num_cut:
                    self.skipped["files cut short or unreadable"] = damaged
            else:
                self._source = builder.as_data_source(config.split, decoders=self._decoders)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"config.data.split={config.split!r} of {config.path}: {error}; it has "
                f"{', '.join(builder.info.splits)}"
            ) from error

    def __len__(self) -> int:
        return len(self._source if self._files is None else self._files)

    def parts(self) -> Iterator[tuple[str, int]]:
        if self._files is not None:
            return self._files.parts(self.folder)
        # Only the reader knows which file holds an example.
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        sizes = [name_and_size(file, self.folder) for file in files]
        return iter([(" ".join([self._config.split, *sizes]), len(self))])

    def stamps(self) -> np.ndarray:
        if self._files is not None:
            return self._files.stamps(self.folder, self._field)
        # Only the reader knows which file holds an example, so any changed file changes all stamps.
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        stamps = [file_stamp(file, self.folder) for file in files]
        return record_stamps([(" ".join([self._field, self._config.split, *stamps]), len(self))])

    def head(self, index: int, size: int) -> bytes:
        return self.record(index).image

    def record(self, index: int) -> Record:
        key = f"{self._config.split}[{index}]"
        example = self._read_example(index, key)
        image = example[self._field]
        if not isinstance(image, bytes):
            raise BadItem(f"{key}: feature {self._field} is not an encoded picture", "no picture")
        return Record(
            key=key,
            image=image,
            captions=self._captions(example),
            score=score_in_field(example, self._config.score_field),
        )

    def _captions(self, example: dict[str, Any]) -> tuple[str, ...]:
        if self._config.captions == "none":
            return ("",)
        if self._config.captions == "labels":
            return tuple(label_captions(example, self._config, self._label_names))
        return captions_in_fields(example, self._config.caption_fields)

    def _read_example(self, index: int, key: str) -> dict[str, Any]:
        data = b""
        if self._files is not None:
            file, row = self._files.locate(index)
            offset, size = file.row(row)
            data = read_range(file.path, offset, size)
        try:
            if self._files is None:
                return self._source[index]
            return self._features.deserialize_example_np(data, decoders=self._decoders)
        # The readers of the formats and protobuf raise errors of many types.
        except Exception as error:
            raise BadItem(f"{key}: {type(error).__name__}: {error}", "damaged record") from error


def index_tfrecord(path: Path) -> Table:
    """Scans one TFRecord file: `[N, 2]`, offset and size of each record's data.

    A record is the length of its data in 8 bytes, a checksum in 4, the data, a checksum in 4.
    """
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


def _label_names(config: SourceConfig, features: Any) -> tuple[str, ...]:
    """The names of the classes. Raises UserError if they are unknown, or there are no labels."""
    if config.captions != "labels":
        return ()
    field = choose_label_field(config, features)
    feature = features
    for name in field.split("/"):
        feature = getattr(feature, "feature", feature)[name]
    feature = getattr(feature, "feature", feature)
    names = config.label_names or tuple(getattr(feature, "names", None) or ())
    if not names and np.issubdtype(feature.np_dtype, np.number):
        raise UserError(
            f"config.data.path={config.path}: feature {field} holds numbers, and the set does not "
            "name its classes; set config.data.label_names to their names, in order"
        )
    return names


def import_tfds() -> Any:
    """The module `tensorflow_datasets`. Raises UserError if it is not installed."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "this source needs tensorflow-datasets: pip install 'imagen-jax[data]' (or pip "
            "install tensorflow-datasets); TensorFlow is not needed"
        ) from error
    return tensorflow_datasets


def _files_of(builder: Any, split: str) -> list[Path]:
    """The files of a split such as "train+val". Raises ValueError or KeyError for any other."""
    if "[" in split:
        raise ValueError("a part of a split can only be read from ArrayRecord files")
    names = [name.strip() for name in split.split("+")]
    return [Path(path) for name in names for path in builder.info.splits[name].filepaths]
