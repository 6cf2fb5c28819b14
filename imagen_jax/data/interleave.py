"""In which order batches come from buckets, each by its share: the sequence of Sainte-Laguë."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence


# Every row of a batch asks.
@functools.lru_cache(256)
def nth_batch(shares: tuple[int, ...], number: int) -> tuple[int, int]:
    """From which bucket batch `number` comes, and how many came from that bucket before it.

    Batch j of bucket b is due at the time (2j + 1) / (2 shares[b]); batches come as they are due,
    those of the first bucket first where several are at once. So at any time every bucket has given
    its share of the batches, to within about half a batch for each bucket there is. Whole numbers
    alone, so it is the same everywhere.

    Args:
      shares: of the buckets, positive.
      number: at least 0.

    Returns:
      The index of the bucket, and j.
    """
    for bucket in range(len(shares)):
        before = bisect.bisect_left(
            range(number + 1), number, key=lambda j, b=bucket: _rank(shares, b, j)
        )
        if _rank(shares, bucket, before) == number:
            return bucket, before
    raise AssertionError("every number is the rank of one batch")


def _rank(shares: Sequence[int], bucket: int, j: int) -> int:
    """How many batches come before batch `j` of a bucket."""
    mine = shares[bucket]
    # Batch i of another bucket is due before this one if (2i + 1) * mine < (2j + 1) * share.
    return sum(
        j if b == bucket else ((2 * j + 1) * share + mine - (b > bucket)) // (2 * mine)
        for b, share in enumerate(shares)
    )
