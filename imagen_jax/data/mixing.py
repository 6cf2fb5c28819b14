"""Several sources as one; each contributes a given share of the examples."""

from __future__ import annotations

import dataclasses
import itertools

from imagen_jax.data.parts import locate
from imagen_jax.data.source import Item, Source


@dataclasses.dataclass(frozen=True)
class MixedSource:
    """The items of all parts, one part after the other. The order of training uses the weights.

    Attributes:
      parts: finite sources of one image size.
      weights: of the parts, positive.
    """

    parts: tuple[Source, ...]
    weights: tuple[float, ...]
    endless: bool = dataclasses.field(default=False, init=False)

    @property
    def ends(self) -> list[int]:
        """For each part, the index after its last item."""
        return list(itertools.accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.parts else 0

    def item(self, index: int) -> Item:
        part, within = locate(self.ends, index)
        return self.parts[part].item(within)
