"""Imagen in JAX and Flax: text-to-image by a cascade of pixel diffusion models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imagen_jax.version import __version__

if TYPE_CHECKING:
    from imagen_jax.sampling import Cascade

__all__ = ["Cascade", "__version__"]


def __getattr__(name: str):
    # On demand: the commands import this package for `--help` too, and Cascade imports jax.
    if name == "Cascade":
        from imagen_jax.sampling import Cascade

        return Cascade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
