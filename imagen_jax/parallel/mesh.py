"""The device mesh: axes "data", "fsdp" and "tensor".

One device is a mesh of one, so there is one code path from a laptop to a pod. An island is a group
of devices with a fast network: the chips of a TPU slice, the GPUs of a node. Only "data" spans
islands, so that the slow network carries gradients once per step and no parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import UserError
from imagen_jax.parallel.chips import chip_of
from imagen_jax.types import BATCH_AXES

AXES = ("data", "fsdp", "tensor")

# Share of a device's memory that the train state may take before "fsdp" shards it further.
# Gradients take as much as the parameters, and activations need at least half of the memory.
STATE_SHARE = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes all that remain.

    Attributes:
      data: whole copies of the state; each computes its own part of the batch.
      fsdp: parts into which a copy of the state is cut, and the batch with it. 0: the smallest
        number for which a part fits into a quarter of a device's memory.
      tensor: parts into which the products of attention are cut, beside that.
    """

    data: int = -1
    fsdp: int = 0
    tensor: int = 1


def make_mesh(
    config: MeshConfig, devices: Sequence[jax.Device] | None = None, *, state_bytes: int = 0
) -> Mesh:
    """A mesh over `devices` (default: all devices of the job).

    Axis types are Auto: with the default, Explicit, a convolution over a sharded kernel is an
    error.

    Args:
      config: sizes of the axes.
      devices: the devices of the mesh.
      state_bytes: size of the whole train state, from which `fsdp=0` is chosen (`choose_fsdp`).

    Raises:
      UserError: the product of the axis sizes is not the number of devices, or "data" is not a
        multiple of the number of islands.
    """
    devices = list(jax.devices() if devices is None else devices)
    islands = count_islands(devices)
    fsdp = config.fsdp
    if fsdp == 0:
        within = len(devices) // islands // max(config.tensor, 1)
        fsdp = choose_fsdp(state_bytes, memory_of(devices[0]), within)
    sizes = [config.data, fsdp, config.tensor]
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
    if islands == 1:
        try:
            layout = create_device_mesh(sizes, devices)
        except NotImplementedError:
            # The size of an axis is not a product of sides of the torus, such as 2 on 4x4x8.
            layout = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(np.asarray(layout), AXES, axis_types=(AxisType.Auto,) * 3)
    if sizes[0] % islands:
        raise UserError(
            f"mesh {_describe(sizes)} would split fsdp or tensor across the slow network between "
            f"{islands} slices or nodes; set config.mesh.data to a multiple of {islands}"
        )
    layout = create_hybrid_device_mesh(
        (sizes[0] // islands, *sizes[1:]),
        (islands, 1, 1),
        devices,
        process_is_granule=not _in_slices(devices),
        allow_split_physical_axes=True,
    )
    return Mesh(np.asarray(layout), AXES, axis_types=(AxisType.Auto,) * 3)


def choose_fsdp(state_bytes: int, memory: int | None, within: int) -> int:
    """The smallest number of shards of the state that leaves enough memory for the work.

    Args:
      state_bytes: size of the whole train state.
      memory: bytes of a device; None if unknown (CPUs), which gives 1.
      within: devices of one island, the most that "fsdp" may span.

    Returns:
      The smallest divisor of `within` for which a device's part is at most `STATE_SHARE` of its
      memory; `within` if none is.
    """
    if memory is None:
        return 1
    for size in range(1, within + 1):
        if within % size == 0 and state_bytes / size <= STATE_SHARE * memory:
            return size
    return within


def memory_of(device: jax.Device) -> int | None:
    """Bytes of memory that a program may use on a device, None if unknown.

    From the runtime; or from the table of chips if the runtime does not report it, as for devices
    that a program is only compiled for.
    """
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # devices of a topology description raise errors of various types
        limit = None
    if limit is None and (chip := chip_of(device.device_kind)):
        limit = int(chip.hbm)
    return limit


def count_islands(devices: Sequence[jax.Device]) -> int:
    """The number of groups of devices with a fast network of their own."""
    if _in_slices(devices):
        return len({device.slice_index for device in devices})
    if devices[0].platform == "gpu":
        return len({device.process_index for device in devices})
    return 1


def _in_slices(devices: Sequence[jax.Device]) -> bool:
    """Whether the devices report their slice (of TPUs) or machine (of GPUs)."""
    return devices[0].platform in ("tpu", "gpu") and hasattr(devices[0], "slice_index")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over "data" and "fsdp", the other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """The number of shards of a batch; batch sizes must be multiples of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _describe(sizes: Sequence[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
