"""Estimates the time of a program by a roofline.

The estimate is the longest of three times, which are assumed to overlap: matrix operations, traffic
of the main memory, traffic of the network. It is what the hardware allows, not a measurement.
"""

from __future__ import annotations

import dataclasses

from imagen_jax.planning.topology import Topology
from imagen_jax.planning.traffic import Traffic

# Assumed share of the peak that matrix units reach in efficient convolutional networks.
EFFICIENCY = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated seconds of one run of a program.

    Attributes:
      compute: of the matrix operations, at `efficiency` of the peak.
      memory: of the traffic of the main memory, at its bandwidth.
      network: of the collectives within the slice plus those to other slices.
      seconds: the longest of the three.
      bound: name of the longest: "compute", "memory" or "network".
      efficiency: the assumed share of the peak.
      mfu: model FLOPs utilisation: model FLOPs (without recomputation) over the peak FLOPs of all
        chips in `seconds`.
    """

    compute: float
    memory: float
    network: float
    seconds: float
    bound: str
    efficiency: float
    mfu: float


def estimate(
    topology: Topology,
    traffic: Traffic,
    *,
    model_flops: float,
    executed_flops: float,
    efficiency: float = EFFICIENCY,
) -> Estimate | None:
    """The time of one run on all chips of `topology`; None if the chip is unknown.

    Args:
      topology: the chips.
      traffic: of each device.
      model_flops, executed_flops: over all devices, without and with recomputation.
      efficiency: see `EFFICIENCY`.
    """
    chip = topology.chip
    if chip is None:
        return None
    peak = chip.bf16_flops * topology.num_chips
    times = {
        "compute": executed_flops / (peak * efficiency),
        "memory": traffic.memory_bytes / chip.hbm_bandwidth,
        "network": traffic.sent(between_slices=False) / topology.ici_bandwidth
        + traffic.sent(between_slices=True) / chip.dcn_bandwidth,
    }
    bound = max(times, key=times.get)
    seconds = times[bound]
    return Estimate(
        **times,
        seconds=seconds,
        bound=bound,
        efficiency=efficiency,
        mfu=model_flops / (peak * seconds),
    )
