"""Encodes all captions of a data source into an embedding store.

Each process encodes its own shards, with the encoder on its own devices. Processes exchange
nothing, so any number of them may be started, killed and restarted, and the store is the same.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from imagen_jax.config import MeshConfig, TextConfig
from imagen_jax.data.pipeline import item_captions
from imagen_jax.data.source import BadItem, Source
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh
from imagen_jax.stores.manifest import Manifest
from imagen_jax.stores.writer import StorePlan, write_shards
from imagen_jax.text.embedding_store import DTYPES, encoder_meta, pack, to_record, to_table
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.types import Array

# Batches on the devices ahead of the one whose result is fetched.
_AHEAD = 2
# Smallest number of tokens of a batch by length.
_MIN_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class CaptionSet:
    """The captions of a data set: of items of the training split, then of held-out items.

    Attributes:
      name: of the source, for the manifest.
      train, held_out: the sources of the two splits.
      num_train, num_held_out: number of items of each, from the start.
    """

    name: str
    train: Source
    held_out: Source
    num_train: int
    num_held_out: int

    def __len__(self) -> int:
        return self.num_train + self.num_held_out

    def captions(self, start: int, stop: int, notes: collections.Counter[str]) -> list[str]:
        """The distinct captions of the items [start, stop), in order.

        Adds the numbers of unreadable items and of repeated captions to `notes`.
        """
        found: dict[str, None] = {}
        for index in range(start, stop):
            held_out = index >= self.num_train
            source = self.held_out if held_out else self.train
            try:
                captions = item_captions(source, index - self.num_train * held_out)
            except BadItem:
                notes["unreadable items"] += 1
                continue
            notes["repeated captions"] += sum(caption in found for caption in captions)
            found.update(dict.fromkeys(captions))
        return list(found)


def local_mesh() -> Mesh:
    """All devices of this process."""
    return make_mesh(MeshConfig(), jax.local_devices())


def encode_captions(
    directory: epath.PathLike,
    captions: CaptionSet,
    encoder: TextEncoder,
    config: TextConfig,
    mesh: Mesh,
    *,
    dtype: str,
    batch_size: int,
    shard_size: int,
    by_length: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest | None:
    """Writes the missing shards of this process; see `stores.writer.write_shards`.

    Args:
      directory: of the store.
      captions: the captions to encode.
      encoder: on `mesh`.
      config: of the encoder, recorded in the manifest.
      mesh: of this process's devices.
      dtype: of the stored values: "float32", "bfloat16" or "int8".
      batch_size: captions per batch, over the mesh.
      shard_size: items per shard.
      by_length: batch captions of similar length, padded to a power of two of tokens: several times
        faster. The embeddings then differ by rounding from those at full length.
      process_index, process_count: index of this process and number of processes.
      progress: called with the number of done items and of all items of this process.

    Returns:
      The manifest, or None while shards of other processes are missing.

    Raises:
      UserError: an unknown dtype, a batch that does not divide over the mesh, an encoder that
        gives values that are not finite, another store in the directory, or a full disk.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} must be one of {', '.join(DTYPES)}")
    if batch_size < 1 or batch_size % batch_shards(mesh):
        raise UserError(
            f"--batch_size={batch_size} must be a multiple of the {batch_shards(mesh)} devices "
            "of this process"
        )
    counter = _Progress(progress)
    meta = encoder_meta(config, encoder.identity, encoder.tokenizer_hash) | {
        "dim": encoder.dim,
        "dtype": dtype,
        "encoder_dtype": encoder.config.dtype,
        "source": captions.name,
        "train_items": captions.num_train,
        "held_out_items": captions.num_held_out,
        # The last bits of a sum depend on the shape of the batch.
        "batch_size": batch_size,
        "by_length": by_length,
    }

    def read(start: int, stop: int, notes: collections.Counter[str]) -> Iterator[bytes]:
        texts = captions.captions(start, stop, notes)
        cut = encoder.tokenizer.num_truncated

        def advance(done: int) -> None:
            counter.within(done * (stop - start) // len(texts))

        yield from _encode(texts, encoder, mesh, dtype, batch_size, by_length, notes, advance)
        notes["captions"] += len(texts)
        notes["cut captions"] += encoder.tokenizer.num_truncated - cut
        yield to_table(texts)

    plan = StorePlan(
        directory=os.fspath(directory), length=len(captions), shard_size=shard_size, meta=meta
    )
    return write_shards(
        plan,
        read,
        process_index=process_index,
        process_count=process_count,
        progress=counter.shard,
    )


def _encode(
    texts: Sequence[str],
    encoder: TextEncoder,
    mesh: Mesh,
    dtype: str,
    batch_size: int,
    by_length: bool,
    notes: collections.Counter[str],
    advance: Callable[[int], None],
) -> Iterator[bytes]:
    """The records of the captions, in order; calls `advance(n)` when n of them are encoded."""
    order: Sequence[int] = range(len(texts))
    if by_length:
        # The number of letters is close to that of tokens, and free.
        order = sorted(order, key=lambda index: (len(texts[index]), index))
    waiting: collections.deque[tuple[Sequence[int], np.ndarray, tuple[Array, Array]]]
    waiting = collections.deque()
    records: dict[int, bytes] = {}
    following = 0

    def fetch() -> None:
        rows, lengths, packed = waiting.popleft()
        values, scales = jax.device_get(packed)
        for row, index in enumerate(rows):
            n = int(lengths[row])
            if not (np.isfinite(scales[row, :n]).all() and _finite(values[row, :n])):
                raise UserError(
                    f"the encoder gives values that are not finite for the caption "
                    f"{texts[index][:80]!r}: its weights are damaged, or do not fit its config.json"
                )
            notes["tokens"] += n
            records[index] = to_record(texts[index], values[row, :n], scales[row, :n])
        advance(following + len(records))

    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        # The last batch is filled up, so that its shape is compiled once.
        filled = [texts[index] for index in rows] + [""] * (batch_size - len(rows))
        ids, mask = encoder.prepare(filled)
        if by_length:
            longest = int(mask.sum(axis=1).max())
            length = _MIN_LENGTH
            while length < longest:
                length *= 2
            ids, mask = ids[:, :length], mask[:, :length]
        ids, mask_on_mesh = jax.device_put((ids, mask), batch_sharding(mesh))
        packed = pack(encoder.encode(ids, mask_on_mesh).tokens, dtype)
        waiting.append((rows, mask.sum(axis=1), packed))
        if len(waiting) > _AHEAD:
            fetch()
        while following in records:
            yield records.pop(following)
            following += 1
    while waiting:
        fetch()
    for index in range(following, len(texts)):
        yield records.pop(index)


def _finite(values: np.ndarray) -> bool:
    return values.dtype == np.int8 or bool(np.isfinite(values.astype(np.float32)).all())


class _Progress:
    """Reports finished items, also within a shard."""

    def __init__(self, progress: Callable[[int, int], None] | None):
        self._progress = progress
        self._done, self._total = 0, 0

    def shard(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self.within(0)

    def within(self, done: int) -> None:
        if self._progress is not None:
            self._progress(self._done + done, self._total)


def describe(manifest: Manifest) -> str:
    """The contents of a complete store, in lines to print."""
    notes, meta = manifest.notes, manifest.meta
    size = sum(shard.size for shard in manifest.shards)
    captions, tokens = max(notes["captions"], 1), notes["tokens"]
    width = {"float32": 4, "bfloat16": 2, "int8": 1}[meta["dtype"]]
    padded = meta["max_length"] * meta["dim"] * width
    lines = [
        f"{notes['captions']:,} captions of {len_items(meta):,} items, "
        f"{tokens / captions:.1f} tokens each, {meta['dim']} wide, {meta['dtype']}",
        f"{size:,} bytes, {size / captions:,.0f} per caption; padded to {meta['max_length']} "
        f"tokens it would be {padded:,} per caption ({padded * captions / size:.1f} times)",
    ]
    for key in ("repeated captions", "cut captions", "unreadable items"):
        if notes.get(key):
            lines.append(f"{notes[key]:,} {key}")
    return "\n".join(lines)


def len_items(meta: dict[str, Any]) -> int:
    """Number of items that a store was made from."""
    return meta["train_items"] + meta["held_out_items"]
