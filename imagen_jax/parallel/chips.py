"""Memory, speed and bandwidth of chips by JAX's `device_kind`: the only such table."""

from __future__ import annotations

import dataclasses
import math

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The data sheet of a chip.

    Attributes:
      kind: JAX's `device_kind`, or its beginning.
      hbm: bytes of memory that a program may use.
      bf16_flops: peak FLOP/s of the matrix units: bfloat16 inputs, float32 sums, no sparsity.
      hbm_bandwidth: bytes/s of the memory.
      ici_link: bytes/s in one direction of one link of the network within a slice.
      dcn_bandwidth: bytes/s that a chip can send to other slices: its share of the network card of
        its host.
    """

    kind: str
    hbm: float
    bf16_flops: float
    hbm_bandwidth: float
    ici_link: float = math.inf
    dcn_bandwidth: float = math.inf


# By version. The two cores of a v4 or v5p chip are one device.
# Peaks and bandwidths: https://cloud.google.com/tpu/docs, the page of each version. `ici_link` is
# the chip's "bidirectional inter-chip interconnect bandwidth" divided by two directions and its
# ports (6 in v4 and v5p, 4 in v5e and v6e). `hbm` is the available memory in the compiler's message
# for a program that does not fit, about what the runtime allows; the pages give the total, 32, 16,
# 95 and 32 GB. The network card of v5e's hosts is documented (2 x 100 Gbps for 8 chips); 200 Gbps
# for 4 chips are assumed for the others.
TPUS = {
    "v4": Chip(
        kind="TPU v4",
        hbm=30.75 * GIB,
        bf16_flops=275e12,
        hbm_bandwidth=1228e9,
        ici_link=50e9,
        dcn_bandwidth=6.25e9,
    ),
    "v5e": Chip(
        kind="TPU v5 lite",
        hbm=15.75 * GIB,
        bf16_flops=197e12,
        hbm_bandwidth=819e9,
        ici_link=50e9,
        dcn_bandwidth=3.125e9,
    ),
    "v5p": Chip(
        kind="TPU v5",
        hbm=95.74 * GIB,
        bf16_flops=459e12,
        hbm_bandwidth=2765e9,
        ici_link=100e9,
        dcn_bandwidth=6.25e9,
    ),
    "v6e": Chip(
        kind="TPU v6 lite",
        hbm=31.25 * GIB,
        bf16_flops=918e12,
        hbm_bandwidth=1638e9,
        ici_link=100e9,
        dcn_bandwidth=6.25e9,
    ),
}
# Data sheets: https://www.nvidia.com/en-us/data-center, dense bf16 on the SXM boards. `ici_link` is
# the NVLink bandwidth of the whole card in one direction. A100: the board with 80 GB.
GPUS = (
    Chip(
        kind="NVIDIA H100 80GB HBM3",
        hbm=80e9,
        bf16_flops=989e12,
        hbm_bandwidth=3350e9,
        ici_link=450e9,
        dcn_bandwidth=50e9,
    ),
    Chip(
        kind="NVIDIA H200",
        hbm=141e9,
        bf16_flops=989e12,
        hbm_bandwidth=4800e9,
        ici_link=450e9,
        dcn_bandwidth=50e9,
    ),
    Chip(
        kind="NVIDIA A100",
        hbm=80e9,
        bf16_flops=312e12,
        hbm_bandwidth=2039e9,
        ici_link=300e9,
        dcn_bandwidth=25e9,
    ),
)
# Other names of these chips in a runtime.
_OTHER_KINDS = {"TPU v5e": TPUS["v5e"], "TPU v6e": TPUS["v6e"]}
# Starts like a chip of the table but has half of the peak.
_UNKNOWN = ("TPU v4 lite",)

_BY_KIND = {chip.kind: chip for chip in (*TPUS.values(), *GPUS)} | _OTHER_KINDS


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device of this kind; None if it is not in the table (a CPU, for example)."""
    if device_kind.startswith(_UNKNOWN):
        return None
    fitting = [kind for kind in _BY_KIND if device_kind.startswith(kind)]
    return _BY_KIND[max(fitting, key=len)] if fitting else None
