"""The device mesh: axes "data", "fsdp" and "tensor".

One device is a mesh of one, so there is a single code path from a laptop to a pod. Devices that
are joined by a fast network (the chips of a TPU slice, the GPUs of a node) are called an island
here; between islands only "data" is cut, so that the slow network carries gradients once a step
and no parameters.
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

# The share of a device's memory that the train state may take before "fsdp" cuts it further. The
# gradients take as much again as the parameters, and activations want at least half.
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
    """A mesh over `devices` (default: all of the job's).

    Axis types are Auto: with the default, Explicit, a convolution over a sharded kernel is an
    error.

    Args:
      config: sizes of the axes.
      devices: what the mesh covers.
      state_bytes: size of the whole train state, from which `fsdp=0` follows (see `choose_fsdp`).

    Raises:
      UserError: the axis sizes do not multiply to the number of devices, or "data" does not
        divide over islands.
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
            # An axis that is not the product of sides of the torus, such as 2 on 4x4x8.
            layout = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(np.asarray(layout), AXES, axis_types=(AxisType.Auto,) * 3)
    if sizes[0] % islands:
        raise UserError(
            f"mesh {_describe(sizes)} would cut fsdp or tensor across the slow network between "
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
    """The least cut of the state that leaves the rest of a device's memory to the work.

    Args:
      state_bytes: size of the whole train state.
      memory: bytes of a device; None, where nobody knows (CPUs), cuts nothing.
      within: devices of one island, over which "fsdp" may go.

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

    The runtime's word, or the table's where the runtime does not tell, as when a program is
    compiled for devices that are not there.
    """
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # devices that are not there answer with errors of their own kinds
        limit = None
    if limit is None and (chip := chip_of(device.device_kind)):
        limit = int(chip.hbm)
    return limit


def count_islands(devices: Sequence[jax.Device]) -> int:
    """How many groups of devices with a fast network of their own there are."""
    if _in_slices(devices):
        return len({device.slice_index for device in devices})
    if devices[0].platform == "gpu":
        return len({device.process_index for device in devices})
    return 1


def _in_slices(devices: Sequence[jax.Device]) -> bool:
    """Whether the devices say what they are joined by: TPU slices, and machines of GPUs."""
    return devices[0].platform in ("tpu", "gpu") and hasattr(devices[0], "slice_index")


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
