"""Interleaves the batches of several buckets by their shares: the sequence of Sainte-Laguë."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence


# Cached because every row of a batch calls it.
@functools.lru_cache(256)
def nth_batch(shares: tuple[int, ...], number: int) -> tuple[int, int]:
    """The bucket of batch `number`, and how many earlier batches came from the same bucket.

    Batch j of bucket b is due at the time (2j + 1) / (2 shares[b]). Batches come in the order of
    these times; of several at the same time, that of the first bucket comes first. At any point of
    the sequence each bucket has had its share of the batches, within about half a batch for each
    bucket. The arithmetic is on integers, so the result is the same on all machines.

    Args:
      shares: of the buckets, positive.
      number: at least 0.

    Returns:
      The index of the bucket, and j.
    """
    for bucket in range(len(shares)):
        earlier = bisect.bisect_left(
            range(number + 1), number, key=lambda j, b=bucket: _rank(shares, b, j)
        )
        if _rank(shares, bucket, earlier) == number:
            return bucket, earlier
    raise AssertionError("every number is the rank of one batch")


def _rank(shares: Sequence[int], bucket: int, j: int) -> int:
    """How many batches of all buckets precede batch `j` of `bucket`."""
    own = shares[bucket]
    # Batch i of another bucket is due before this one if (2i + 1) * own < (2j + 1) * share.
    return sum(
        j if b == bucket else ((2 * j + 1) * share + own - (b > bucket)) // (2 * own)
        for b, share in enumerate(shares)
    )
