"""Scenes of plain shapes as a source of pictures with captions."""

from __future__ import annotations

import dataclasses
import sys

from imagen_jax.data.builtin.shapes.captions import caption
from imagen_jax.data.builtin.shapes.rendering import render
from imagen_jax.data.builtin.shapes.scenes import scene
from imagen_jax.data.source import Item


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """Item `index` is scene and caption number `index` of the sequence `seed`, drawn on demand."""

    split: str
    image_size: int
    seed: int = 0
    endless: bool = dataclasses.field(default=True, init=False)

    def __len__(self) -> int:
        return sys.maxsize

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an item, without drawing it."""
        return (caption(scene(self.seed, index, self.split), self.seed, index).text,)

    def item(self, index: int) -> Item:
        drawn = scene(self.seed, index, self.split)
        return Item(render(drawn, self.image_size), caption(drawn, self.seed, index).text)
