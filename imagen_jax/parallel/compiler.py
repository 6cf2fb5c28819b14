"""XLA's options for the programs that hold convolutions."""

from __future__ import annotations

import jax

# What XLA:CPU hands to its kernel library YNNPACK. By default convolutions are among it, and the
# gradients of their kernels then take two to three times as long as in XLA's own, which also use
# all cores (docs/decisions.md).
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


def compiler_options(device: jax.Device) -> dict[str, str]:
    """For `jax.jit(...).lower(...).compile(compiler_options=...)`; empty but on a CPU."""
    return dict(_CPU_OPTIONS) if device.platform == "cpu" else {}
