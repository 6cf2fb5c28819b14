"""Sampling from trained cascades; `from imagen_jax.sampling import Cascade`."""

from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.folder import PictureFolder
from imagen_jax.sampling.request import Request
from imagen_jax.sampling.result import Result

__all__ = ["Cascade", "PictureFolder", "Request", "Result"]
