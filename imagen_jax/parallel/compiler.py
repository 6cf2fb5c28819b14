"""XLA's compiler options for programs with convolutions."""

from __future__ import annotations

import jax

# Operations that XLA:CPU leaves to its kernel library YNNPACK. By default these include
# convolutions; the gradients of their kernels then take two to three times as long as with XLA's
# own convolutions, which also use all cores (docs/decisions.md).
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


def compiler_options(device: jax.Device) -> dict[str, str]:
    """For `jax.jit(...).lower(...).compile(compiler_options=...)`; not empty on CPUs only."""
    return dict(_CPU_OPTIONS) if device.platform == "cpu" else {}
