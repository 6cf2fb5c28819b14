"""From the host's pictures and captions to global, sharded batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.config import StageConfig
from imagen_jax.data.pipeline import LeftOut
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import batch_sharding, batch_shards
from imagen_jax.parallel.placement import BatchRows, replicate
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.types import Batch, TextCond


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh, name: str) -> None:
    """Raises UserError unless each part of the batch divides over the mesh."""
    shards, what = batch_shards(mesh), "mesh's data x fsdp shards"
    if accumulate > 1:
        shards, what = shards * accumulate, f"{what} times train.accumulate={accumulate}"
    if batch_size % shards:
        near = max(shards, batch_size // shards * shards)
        raise UserError(
            f"{name}={batch_size} does not divide over the {shards} {what}; "
            f"set it to a multiple of {shards}, for example {near}"
        )


def replicate_encoder(encoder: TextEncoder, mesh: Mesh) -> TextEncoder:
    """The encoder with its parameters on every device of the mesh."""
    return dataclasses.replace(encoder, params=replicate(encoder.params, mesh))


def device_batches(
    host_batches: Iterator[dict[str, Any]], encoder: TextEncoder, rows: BatchRows
) -> Iterator[tuple[Batch, LeftOut]]:
    """Encodes captions on the mesh and lays pictures (uint8) out over it.

    The encoder's program is dispatched behind the step in progress, so it delays nothing on the
    host. Yields the batch and the items that were left out of this process's rows.
    """
    for host in host_batches:
        ids, mask = encoder.tokenizer(host["captions"], encoder.max_length)
        text = encoder.encode(rows.global_array(ids), rows.global_array(mask))
        yield Batch(image=rows.global_array(host["image"]), text=text), host["left_out"]


def abstract_batch(stage: StageConfig, encoder: TextEncoder, mesh: Mesh) -> Batch:
    """The shapes and shardings of a training batch."""
    sharding = batch_sharding(mesh)
    size = stage.train.crop_size or stage.resolution
    count, length = stage.train.batch_size, encoder.max_length

    def leaf(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return Batch(
        image=leaf((count, size, size, 3), jnp.uint8),
        text=TextCond(
            tokens=leaf((count, length, encoder.dim), jnp.float32),
            mask=leaf((count, length), jnp.bool_),
        ),
    )
