"""What a record store says of itself: its shards, what it was made from, whether it is complete.

A store is a directory of `shard-00000.array_record` ... and `manifest.json`, which is written
last. Shard i holds what the positions [i * shard_size, (i + 1) * shard_size) of some numbered
collection come to, in order.
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
# Settings and finished shards of a store that is not complete.
UNFINISHED = "unfinished"


@dataclasses.dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard.

    Attributes:
      file: its name.
      count: records in it.
      size: bytes of the file.
      sha256: of the file, in hexadecimal.
      notes: what the writer counted while it made it (left-out items by reason, say).
    """

    file: str
    count: int
    size: int
    sha256: str
    notes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a complete store holds.

    Attributes:
      meta: what it was made from and how, as plain JSON values.
      length: positions of the collection that it was made from.
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
        return sum(shard.count for shard in self.shards)

    @property
    def notes(self) -> dict[str, int]:
        """The notes of all shards, added up."""
        total: collections.Counter[str] = collections.Counter()
        for shard in self.shards:
            total.update(shard.notes)
        return dict(total)


def read_manifest(directory: epath.PathLike) -> Manifest:
    """The manifest of a complete store. Raises UserError where there is none."""
    directory = epath.Path(directory)
    values = manifest_values(directory)
    if values is None:
        if (directory / UNFINISHED).exists():
            raise UserError(
                f"the store {directory} is not complete; run the command that makes it again, "
                "it goes on where it stopped"
            )
        raise UserError(f"{directory} is not a record store: it has no {MANIFEST}")
    return to_manifest(values)


def manifest_values(directory: epath.Path) -> dict[str, Any] | None:
    """The manifest as it is stored, None where there is none."""
    values = read_json(directory / MANIFEST)
    if values is None:
        return None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{directory / MANIFEST} is not of a record store of format {FORMAT}")
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
    """What a JSON file holds, None where there is none. Raises UserError if it is damaged."""
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
