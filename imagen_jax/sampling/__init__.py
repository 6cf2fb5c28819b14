"""Sampling from trained cascades; `from imagen_jax.sampling import Cascade`."""

from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.result import Result

__all__ = ["Cascade", "Result"]
