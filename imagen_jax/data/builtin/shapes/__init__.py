"""The built-in source of plain shapes: scenes, their captions, their pictures."""

from imagen_jax.data.builtin.shapes.captions import Caption, ObjectClaim, caption, captions
from imagen_jax.data.builtin.shapes.rendering import render
from imagen_jax.data.builtin.shapes.scenes import (
    Object,
    Scene,
    held_out_pairs,
    is_held_out_triple,
    scene,
)

__all__ = [
    "Caption",
    "Object",
    "ObjectClaim",
    "Scene",
    "caption",
    "captions",
    "held_out_pairs",
    "is_held_out_triple",
    "render",
    "scene",
]
