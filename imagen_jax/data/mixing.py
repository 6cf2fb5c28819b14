"""Several sources as one, each with its share of the examples."""

from __future__ import annotations

import bisect
import dataclasses
import itertools

from imagen_jax.data.source import Item, Source


@dataclasses.dataclass(frozen=True)
class MixedSource:
    """The items of all parts, one part after the other. The order draws them by weight.

    Attributes:
      parts: finite sources of one image size.
      weights: of the parts, positive.
    """

    parts: tuple[Source, ...]
    weights: tuple[float, ...]
    endless: bool = dataclasses.field(default=False, init=False)

    @property
    def ends(self) -> list[int]:
        """The index behind the last item of each part."""
        return list(itertools.accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.parts else 0

    def item(self, index: int) -> Item:
        number = bisect.bisect_right(self.ends, index)
        return self.parts[number].item(index - (self.ends[number] - len(self.parts[number])))
