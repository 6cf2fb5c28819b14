"""Imagen in JAX and Flax: text-to-image by a cascade of pixel diffusion models."""

__version__ = "0.1.0"
