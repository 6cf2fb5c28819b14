"""The slices that a program can be planned for: their names, chips and networks."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import re

import jax

from imagen_jax.errors import UserError
from imagen_jax.parallel.chips import TPUS, Chip, chip_of
from imagen_jax.parallel.mesh import memory_of

LOCAL = "local"

# Length of an axis from which a slice has the links that close it to a ring (a cube of 64 chips in
# v4 and v5p, a whole pod in v5e and v6e).
_RING = {"v4": 4, "v5e": 16, "v5p": 4, "v6e": 16}
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
# Chips whose two cores are one device.
_MEGACORE = ("v4", "v5p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Chips and their network.

    Attributes:
      name: as the user writes it, such as "v5e:8x8".
      chip: the kind of chip; None if the local device is unknown.
      version: of the TPU, such as "v5e"; "" for local devices.
      shape: number of chips of a slice along each axis of its network.
      num_slices: number of slices.
    """

    name: str
    chip: Chip | None
    version: str
    shape: tuple[int, ...]
    num_slices: int

    @property
    def num_chips(self) -> int:
        """Number of chips of all slices."""
        return math.prod(self.shape) * self.num_slices

    @property
    def rings(self) -> tuple[bool, ...]:
        """For each axis, whether its links form a ring."""
        if not self.version:
            return (False,) * len(self.shape)
        unit = _RING[self.version]
        if self.version in _MEGACORE:  # all axes or none: only whole cubes are rewired
            return (all(size % unit == 0 for size in self.shape),) * len(self.shape)
        return tuple(size == unit for size in self.shape)

    @property
    def ici_bandwidth(self) -> float:
        """Bytes/s that each chip of a slice can send in a collective of all chips.

        A ring gives two links; an open axis gives one, limited by its ends.
        """
        if self.chip is None:
            return math.inf
        if not self.version:
            return self.chip.ici_link
        links = sum(
            2 if ring else 1 for size, ring in zip(self.shape, self.rings, strict=True) if size > 1
        )
        return self.chip.ici_link * max(links, 1)


def parse_topology(text: str) -> Topology:
    """Parses "v5e:8x8", "v4:4x4x8", "v5e:16x16*2" (two slices) or "local".

    Raises:
      UserError: an unknown version, or a shape that the version does not have.
    """
    if text == LOCAL:
        return _local()
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text)
    if not match:
        raise UserError(
            f"--topology={text} is not valid: write a version and the chips along each axis, "
            f"for example v5e:8x8, v4:4x4x8, v5e:16x16*2 for two slices, or local"
        )
    version, shape_text, slices = match.groups()
    if version not in TPUS:
        raise UserError(
            f"--topology={text}: version {version} is not one of {', '.join(TPUS)} (or local)"
        )
    shape = tuple(map(int, shape_text.split("x")))
    if len(shape) != _DIMENSIONS[version]:
        example = "4x4x8" if _DIMENSIONS[version] == 3 else "8x8"
        raise UserError(
            f"--topology={text}: the network of {version} has {_DIMENSIONS[version]} axes, "
            f"for example {version}:{example}"
        )
    num_slices = int(slices or 1)
    if min(*shape, num_slices) < 1:
        raise UserError(f"--topology={text}: every number must be at least 1")
    return Topology(
        name=text, chip=TPUS[version], version=version, shape=shape, num_slices=num_slices
    )


def _local() -> Topology:
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip is not None:
        # The memory that the runtime reports, if it does.
        chip = dataclasses.replace(
            chip, kind=devices[0].device_kind, hbm=float(memory_of(devices[0]))
        )
    nodes = len({device.process_index for device in devices})
    shape = (len(devices) // nodes,)
    return Topology(name=LOCAL, chip=chip, version="", shape=shape, num_slices=nodes)


def compiler_version(topology: Topology) -> str:
    """The version of the package that compiles for these chips.

    Raises:
      UserError: the package is not installed.
    """
    if not topology.version:
        return importlib.metadata.version("jaxlib")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology.name} needs the TPU compiler, which is not installed: "
            f"pip install 'imagen-jax[aot]' (or pip install 'libtpu==0.0.42.*'; x86-64 Linux)"
        )
    return importlib.metadata.version("libtpu")


def devices_of(topology: Topology) -> list[jax.Device]:
    """The local devices, or descriptions of devices to compile for.

    Raises:
      UserError: the compiler does not support a slice of this shape.
    """
    if not topology.version:
        return list(jax.devices())
    compiler_version(topology)
    from jax.experimental.topologies import get_topology_desc

    shape = "x".join(map(str, topology.shape))
    options = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    if topology.version in _MEGACORE:
        options["chip_config_name"] = "megacore"
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if any(topology.rings):
        options["wrap"] = (*topology.rings, False)[:3]
    try:
        description = get_topology_desc(
            platform="tpu", topology_name=f"{topology.version}:{shape}", **options
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--topology={topology.name}: the TPU compiler does not support this slice ({reason})"
        ) from error
    return list(description.devices)
