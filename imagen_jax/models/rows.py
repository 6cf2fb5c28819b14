"""Keeps activations where their rows are: each device works on its own part of the batch."""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

from imagen_jax.types import BATCH_AXES, Array


def keep_rows(x: Array) -> Array:
    """`x` `[B, ...]` with its batch axis over "data" and "fsdp" of the mesh in `jax.set_mesh`.

    Where kernels are cut over "fsdp", XLA's partitioner is free to cut activations by channels
    instead of gathering the kernel, and then moves the whole batch between devices and back. Told
    this after every layer, it gathers kernels. The other axes are left to it, for "tensor". Without
    a mesh, or for a batch that does not divide over it, this is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(name not in mesh.shape for name in BATCH_AXES):
        return x
    if x.shape[0] % math.prod(mesh.shape[name] for name in BATCH_AXES):
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *free))
