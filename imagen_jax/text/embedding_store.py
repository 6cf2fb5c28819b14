"""Embeddings of captions on disk, which training reads instead of running the encoder.

A record store with one record per caption. A record is found by the hash of its caption, so the
order of the data may change without mixing up embeddings. Embeddings are ragged (without padding),
in float32, bfloat16, or int8 with a scale for each token.

The last record of a shard is the table of its captions' hashes, in the order of its records.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from imagen_jax.config import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.stores.store import RecordError, RecordStore
from imagen_jax.text import cleaning
from imagen_jax.text.encoder import identify, is_local
from imagen_jax.types import Array, TextCond

KIND = "text embeddings"
DTYPES = ("float32", "bfloat16", "int8")
KEY_BYTES = 16
_HEADER = struct.Struct(f"<{KEY_BYTES}sH")
_TABLE = b"caption hashes of this shard\n"


# --- records ----------------------------------------------------------------------------------


def caption_key(caption: str) -> bytes:
    """The key of a caption: 128 bits of its hash."""
    return hashlib.blake2b(caption.encode("utf-8", "replace"), digest_size=KEY_BYTES).digest()


@functools.partial(jax.jit, static_argnames="dtype")
def pack(tokens: Array, dtype: str) -> tuple[Array, Array]:
    """Converts tokens `[B, L, D]` f32 to a store's dtype, with scales `[B, L]` f32.

    int8 is symmetric, with the largest magnitude of a token at 127. Other dtypes have scales of 1.
    """
    if dtype != "int8":
        return tokens.astype(dtype), jnp.ones(tokens.shape[:2])
    scales = jnp.max(jnp.abs(tokens), axis=-1) / 127.0
    values = tokens / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny)[..., None]
    return jnp.round(values).astype(jnp.int8), scales


@functools.partial(jax.jit, static_argnames="sharding")
def unpack(
    values: Array, scales: Array, mask: Array, sharding: NamedSharding | None = None
) -> TextCond:
    """The inverse of `pack` up to rounding; 0 where `mask` `[B, L]` is False."""
    tokens = values.astype(jnp.float32) * scales[:, :, None]
    text = TextCond(tokens=jnp.where(mask[:, :, None], tokens, 0.0), mask=mask)
    return text if sharding is None else jax.lax.with_sharding_constraint(text, sharding)


def to_record(caption: str, values: np.ndarray, scales: np.ndarray) -> bytes:
    """The record of a caption: its key, `[n, D]` values and, for int8, `[n]` f32 scales."""
    parts = [_HEADER.pack(caption_key(caption), len(values)), np.ascontiguousarray(values)]
    if values.dtype == np.int8:
        parts.insert(1, np.ascontiguousarray(scales, "<f4"))
    return b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)


def from_record(record: bytes, dtype: str, dim: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Key, `[n, D]` values and `[n]` scales of a record. Raises ValueError for a wrong size."""
    key, length = _HEADER.unpack_from(record)
    start, scales = _HEADER.size, np.ones(length, np.float32)
    if dtype == "int8":
        scales = np.frombuffer(record, "<f4", length, start)
        start += scales.nbytes
    values = np.frombuffer(record, jnp.dtype(dtype), offset=start)
    return key, values.reshape(length, dim), scales


def to_table(captions: Sequence[str]) -> bytes:
    """The last record of a shard with these captions."""
    return _TABLE + b"".join(map(caption_key, captions))


# --- reading ----------------------------------------------------------------------------------


class StoredText:
    """The embeddings of a store; a `TextSource`.

    Args:
      directory: made by `python -m imagen_jax.cli.encode_text`.

    Attributes:
      meta: the source, encoder and settings that the store was made with.
      dtype: of the stored values.
      dim, max_length, identity, tokenizer_hash: of the encoder, see `TextSource`.

    Raises:
      UserError: there is no complete store of embeddings, or its hashes cannot be read.
    """

    def __init__(self, directory: epath.PathLike):
        self._store = RecordStore(directory)
        self.directory = directory
        self.meta = self._store.manifest.meta
        if self.meta.get("kind") != KIND:
            raise UserError(
                f"data.embeddings={directory} does not hold {KIND}: make such a store with "
                "python -m imagen_jax.cli.encode_text"
            )
        self.dtype, self.dim = self.meta["dtype"], self.meta["dim"]
        self.max_length = self.meta["max_length"]
        self.identity = self.meta["encoder_identity"]
        self.tokenizer_hash = self.meta["tokenizer_hash"]
        self._keys, self._places = self._read_tables()

    def __len__(self) -> int:
        """Number of stored captions; a caption of several shards counts several times."""
        return len(self._places)

    def _read_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys `[N, 2]` u64, sorted by their first half, and the record index of each `[N]`."""
        keys, places, start = [], [], 0
        for shard in self._store.manifest.shards:
            table = self._read(start + shard.count - 1)
            if not table.startswith(_TABLE) or len(table) != len(_TABLE) + KEY_BYTES * (
                shard.count - 1
            ):
                raise self._damaged(f"{shard.file} has no table of its captions")
            keys.append(np.frombuffer(table, "<u8", offset=len(_TABLE)).reshape(-1, 2))
            places.append(start + np.arange(shard.count - 1))
            start += shard.count
        all_keys = np.concatenate(keys)
        order = np.argsort(all_keys[:, 0], kind="stable")
        return all_keys[order], np.concatenate(places)[order]

    def find(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """A caption's values `[n, D]` and scales `[n]`.

        Raises:
          UserError: the store does not have the caption, or its record cannot be read.
        """
        key = caption_key(caption)
        first, second = np.frombuffer(key, "<u8")
        index = int(np.searchsorted(self._keys[:, 0], first))
        while index < len(self._keys) and self._keys[index, 0] == first:
            if self._keys[index, 1] == second:
                return self._values(int(self._places[index]), key)
            index += 1
        raise UserError(
            f"the caption {caption[:80]!r} is not in data.embeddings={self.directory}, which was "
            f"made from {self.meta['train_items']:,} training items of "
            f"{self.meta['source']!r} and {self.meta['held_out_items']:,} held-out ones. Has the "
            "data changed? Encode it again (python -m imagen_jax.cli.encode_text), or train "
            "without data.embeddings"
        )

    def _values(self, place: int, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        record = self._read(place)
        try:
            found, values, scales = from_record(record, self.dtype, self.dim)
        except (ValueError, struct.error) as error:
            raise self._damaged(f"record {place}: {error}") from error
        if found != key or len(values) > self.max_length:
            raise self._damaged(f"record {place} is not of the caption in the shard's table")
        return values, scales

    def _read(self, index: int) -> bytes:
        try:
            return self._store.read(index)
        except RecordError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"data.embeddings={self.directory} is damaged: {reason}. Bring back a copy of the "
            f"shard; `python -m imagen_jax.cli.encode_text --verify --out={self.directory}` lists "
            "all that differ"
        )

    def prepare(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Padded values `[B, L, D]` in the store's dtype, scales `[B, L]` and mask `[B, L]`."""
        shape = (len(captions), self.max_length)
        dtype = jnp.dtype(self.dtype)
        # Filled as integers: numpy copies bfloat16 element by element, six times slower.
        bits = np.zeros((*shape, self.dim), f"u{dtype.itemsize}")
        scales, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for row, caption in enumerate(captions):
            found, found_scales = self.find(caption)
            bits[row, : len(found)] = found.view(bits.dtype)
            scales[row, : len(found)] = found_scales
            mask[row, : len(found)] = True
        return bits.view(dtype), scales, mask

    def embed(
        self,
        prepared: tuple[np.ndarray, np.ndarray, np.ndarray],
        place: Callable[[np.ndarray], Array] = jnp.asarray,
    ) -> TextCond:
        """Moves the result of `prepare` to the devices in the store's dtype, then unpacks it."""
        values, scales, mask = map(place, prepared)
        sharding = mask.sharding if isinstance(mask.sharding, NamedSharding) else None
        return unpack(values, scales, mask, sharding)


# --- agreement of store and configuration -----------------------------------------------------


def encoder_meta(config: TextConfig, identity: str, tokenizer_hash: str) -> dict[str, Any]:
    """The part of a manifest that must agree with the configuration of a run."""
    return {
        "kind": KIND,
        "encoder_identity": identity,
        "tokenizer_hash": tokenizer_hash,
        "max_length": config.max_length,
        "cleaning": cleaning.version(config.cleaning),
    }


def open_store(directory: str, config: TextConfig, mesh: Mesh | None = None) -> StoredText:
    """Opens a store for training with the encoder of the configuration.

    If the encoder's files are not local, its hashes are not compared.

    Args:
      directory: the store.
      config: of the encoder.
      mesh: of the job; its first process hashes the encoder for all.

    Raises:
      UserError: shows each difference between the store and the configuration; see `StoredText`.
    """
    store = StoredText(directory)
    identity, tokenizer_hash = store.identity, store.tokenizer_hash
    if is_local(config):
        identity, tokenizer_hash = identify(config, mesh)
    expected = encoder_meta(config, identity, tokenizer_hash)
    names = {
        "encoder_identity": f"encoder (config.text.encoder={config.encoder!r})",
        "tokenizer_hash": "tokenizer",
        "max_length": "config.text.max_length",
        "cleaning": "config.text.cleaning",
    }
    differences = [
        f"  {name}: {_short(store.meta[key])} in the store, {_short(expected[key])} now"
        for key, name in names.items()
        if store.meta[key] != expected[key]
    ]
    if differences:
        raise UserError(
            f"data.embeddings={directory} was not made with this configuration:\n"
            + "\n".join(differences)
            + "\nChange the configuration, or encode again into another directory with "
            "python -m imagen_jax.cli.encode_text."
        )
    return store


def check_covers(text: Any, split: str, needed: int, why: str) -> None:
    """Refuses a store that was made from fewer items than a run will read.

    Args:
      text: the run's `TextSource`; only a `StoredText` is checked.
      split: "train" or "held_out".
      needed: number of items, from the start of the split, that the run reads.
      why: subject and verb of the message, which `needed` completes.

    Raises:
      UserError: the store has fewer items.
    """
    if not isinstance(text, StoredText):
        return
    have = text.meta[f"{split}_items"]
    if have < needed:
        raise UserError(
            f"data.embeddings={text.directory} was made from {have:,} items of the {split} split, "
            f"but {why} {needed:,}: encode again into another directory"
            + (f" with --num_items={needed}" if split == "train" else "")
        )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
