"""From what a program computes, moves and sends to how long it may take: a roofline.

The longest of three times counts, as if the other two hid behind it: matrix operations, traffic of
the main memory, traffic of the network. It is an estimate of what the hardware allows, not a
measurement.
"""

from __future__ import annotations

import dataclasses

from imagen_jax.planning.topology import Topology
from imagen_jax.planning.traffic import Traffic

# The share of the peak that matrix units reach in convolutional networks that run well. Assumed.
EFFICIENCY = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of one run of a program.

    Attributes:
      compute: matrix operations at `efficiency` of the peak.
      memory: main memory at its bandwidth.
      network: collectives within the slice and to other slices, one after the other.
      seconds: the longest of them.
      bound: which that is: "compute", "memory" or "network".
      efficiency: assumed.
      mfu: model FLOPs over what all chips could do in `seconds`; without what is computed twice.
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
    """The time of one run on all chips of `topology`; None if nothing is known of the chip.

    Args:
      topology: the chips.
      traffic: of one device.
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
