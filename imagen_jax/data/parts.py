"""Several parts as one sequence with a single numbering."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def locate(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Finds an item of the whole sequence in its part.

    Args:
      ends: for each part, the index in the whole sequence after its last item.
      index: of the item in the whole sequence.

    Returns:
      The number of the part, and the index of the item in that part.
    """
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)
