"""The manifest of a record store: its shards, what it was made from, whether it is complete.

A store is a directory with `shard-00000.array_record` ... and `manifest.json`, which is written
last. It is made from a collection with numbered positions. Shard i holds the records of the
positions [i * shard_size, (i + 1) * shard_size), in order; a position has one record, several or
none.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from etils import epath

from imagen_jax.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
# Folder with the plan and the entries of finished shards while a store is not complete.
UNFINISHED = "unfinished"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Entry of one shard.

    Attributes:
      file: name of its file.
      count: number of its records.
      size: bytes of the file.
      sha256: checksum of the file, in hexadecimal.
      notes: what the writer counted for the shard, such as left-out items by reason.
    """

    file: str
    count: int
    size: int
    sha256: str
    notes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Contents of a complete store.

    Attributes:
      meta: what the store was made from and how, as plain JSON values.
      length: number of positions of the collection.
      shard_size: positions a shard.
      compression: "none" or "zstd".
      shards: in the order of the positions.
    """

    meta: dict[str, Any]
    length: int
    shard_size: int
    compression: str
    shards: tuple[Shard, ...]

    @property
    def num_records(self) -> int:
        """Records of all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def notes(self) -> dict[str, int]:
        """The sums of the notes of all shards."""
        total: collections.Counter[str] = collections.Counter()
        for shard in self.shards:
            total.update(shard.notes)
        return dict(total)


def read_manifest(directory: epath.PathLike) -> Manifest:
    """The manifest of a complete store. Raises UserError if there is none."""
    directory = epath.Path(directory)
    values = manifest_values(directory)
    if values is None:
        if (directory / UNFINISHED).exists():
            raise UserError(
                f"the store {directory} is not complete; run the command that makes it again to "
                "continue"
            )
        raise UserError(f"{directory} is not a record store: it has no {MANIFEST}")
    return to_manifest(values)


def manifest_values(directory: epath.Path) -> dict[str, Any] | None:
    """The manifest as it is stored, None if there is none. Raises UserError if it is damaged."""
    values = read_json(directory / MANIFEST)
    if values is None:
        return None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(
            f"{directory / MANIFEST} is not the manifest of a record store of format {FORMAT}"
        )
    return values


def to_manifest(values: dict[str, Any]) -> Manifest:
    """A stored manifest as an object."""
    return Manifest(
        meta=values["meta"],
        length=values["length"],
        shard_size=values["shard_size"],
        compression=values["compression"],
        shards=tuple(Shard(**shard) for shard in values["shards"]),
    )


def read_json(path: epath.Path) -> Any:
    """The contents of a JSON file, None if there is none. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it to make it again") from error


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
