"""Keeps activations sharded over the batch.

By default XLA's partitioner shards activations over channels wherever a kernel is sharded over them
("fsdp"). It then gathers the batch instead of the kernel, so that every device holds the
activations of all pictures, and restores the batch by all-to-alls.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec

from imagen_jax.types import BATCH_AXES, Array


def shard_over_batch(x: Array, axis: int = 0) -> Array:
    """`x` with `axis` sharded over the mesh of `jax.set_mesh`; "tensor" may shard the other axes.

    Returns `x` unchanged without a mesh or if the axis does not divide (one picture on eight
    devices).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(name not in mesh.shape for name in BATCH_AXES):
        return x
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if parts == 1 or x.shape[axis] % parts:
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = BATCH_AXES
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


class Conv(nn.Conv):
    """`nn.Conv` whose input and output, and so their gradients, are sharded over the batch."""

    def __call__(self, inputs: Any) -> Array:
        """`[B, H, W, C]` to `[B, H', W', features]`."""
        return shard_over_batch(super().__call__(shard_over_batch(inputs)))


class Dense(nn.Dense):
    """`nn.Dense` whose input and output, and so their gradients, are sharded over the batch."""

    def __call__(self, inputs: Any) -> Array:
        """`[B, ..., C]` to `[B, ..., features]`."""
        return shard_over_batch(super().__call__(shard_over_batch(inputs)))
