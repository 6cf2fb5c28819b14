"""Tells the partitioner to keep activations cut over the batch.

Left alone, XLA cuts activations over channels wherever a kernel is cut over them ("fsdp"): it
gathers the batch instead of the kernel, every device then holds the activations of all pictures,
and all-to-alls bring them back.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec

from imagen_jax.types import BATCH_AXES, Array


def over_batch(x: Array, axis: int = 0) -> Array:
    """`x` with `axis` cut over the mesh of `jax.set_mesh`; the others are free for "tensor".

    Without a mesh, and where the axis does not divide (one picture on eight devices), `x` as it is.
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
    """`nn.Conv` whose picture and result, and so their gradients, are cut over the batch."""

    def __call__(self, inputs: Any) -> Array:
        """`[B, H, W, C]` to `[B, H', W', features]`."""
        return over_batch(super().__call__(over_batch(inputs)))


class Dense(nn.Dense):
    """`nn.Dense` whose input and result, and so their gradients, are cut over the batch."""

    def __call__(self, inputs: Any) -> Array:
        """`[B, ..., C]` to `[B, ..., features]`."""
        return over_batch(super().__call__(over_batch(inputs)))
