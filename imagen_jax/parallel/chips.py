"""What is known of the chips that a program runs on, by `device_kind`: the only such table."""

from __future__ import annotations

import dataclasses
import math

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, as its maker describes it.

    Attributes:
      kind: JAX's `device_kind`, or how it starts.
      hbm: bytes of memory that a program may use.
      bf16_flops: peak of its matrix units per second, bfloat16 in, float32 sums, no sparsity.
      hbm_bandwidth: bytes/s.
      ici_link: bytes/s that one link of the network within a slice carries in one direction.
      dcn_bandwidth: bytes/s that a chip can send to other slices, its share of its host's network
        card.
    """

    kind: str
    hbm: float
    bf16_flops: float
    hbm_bandwidth: float
    ici_link: float = math.inf
    dcn_bandwidth: float = math.inf


# By version. A v4 or v5p chip, of two cores, is one device.
# Peaks and bandwidths: https://cloud.google.com/tpu/docs, the page of each version. A link carries
# in one direction the chip's "bidirectional inter-chip interconnect bandwidth" over two directions
# and its ports (6 in v4 and v5p, 4 in v5e and v6e). `hbm` is what the compiler states as available
# when a program does not fit, about what the runtime gives out; the pages' 32, 16, 95 and 32 GB are
# all there is. The network card of v5e's hosts is documented (2 x 100 Gbps for 8 chips); 200 Gbps
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
# Data sheets: https://www.nvidia.com/en-us/data-center, dense bf16 on the SXM boards. NVLink is
# taken per direction over the whole card. A100: memory of the board with 80 GB.
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
# What else a runtime may call them.
_OTHER_KINDS = {"TPU v5e": TPUS["v5e"], "TPU v6e": TPUS["v6e"]}
# Starts like a chip of the table and is another: a variant with half of the peak.
_UNKNOWN = ("TPU v4 lite",)

_BY_KIND = {chip.kind: chip for chip in (*TPUS.values(), *GPUS)} | _OTHER_KINDS


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device of this kind; None if nothing is known of it (a CPU, say)."""
    if device_kind.startswith(_UNKNOWN):
        return None
    fitting = [kind for kind in _BY_KIND if device_kind.startswith(kind)]
    return _BY_KIND[max(fitting, key=len)] if fitting else None
