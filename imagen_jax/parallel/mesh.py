"""The device mesh: axes "data", "fsdp" and "tensor".

One device is a mesh of one, so there is a single code path from a laptop to a pod.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_jax.config import MeshConfig
from imagen_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all of the job's).

    Axis types are Auto: with the default, Explicit, a convolution over a sharded kernel is an
    error.

    Raises:
      UserError: the axis sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"mesh {_describe(sizes)}: sizes must be positive, at most one of them -1 "
            f"(what is left over)"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh {_describe(sizes)} does not cover {len(devices)} device(s); set "
            f"config.mesh.data, fsdp and tensor so that their product is the number of devices"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """The number of parts a batch is cut into; a batch size must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _describe(sizes: Sequence[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
