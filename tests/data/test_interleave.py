"""The order of buckets, compared with the definition."""

from fractions import Fraction

import pytest

from imagen_jax.data.interleave import nth_batch


def by_definition(shares, number):
    """All batches by the time at which they are due; at equal times the first bucket first."""
    due = [
        (Fraction(2 * j + 1, 2 * share), bucket, j)
        for bucket, share in enumerate(shares)
        for j in range(number)
    ]
    return [(bucket, j) for _, bucket, j in sorted(due)[:number]]


@pytest.mark.parametrize(
    "shares", [(1,), (1, 1), (2, 1), (7, 3, 3), (100, 1, 17, 17, 5), (3, 10**30, 10**29)]
)
def test_batches_come_as_they_are_due(shares):
    assert [nth_batch(shares, k) for k in range(130)] == by_definition(shares, 130)


def test_far_into_a_run_every_bucket_has_had_its_share():
    shares, number = (900_000, 50_000, 49_999), 123_456_789
    counts = [0] * 3
    for k in range(number, number + 200):
        bucket, before = nth_batch(shares, k)
        # Half a batch for each of the three buckets.
        assert abs(before - k * shares[bucket] / sum(shares)) <= 1.5
        counts[bucket] += 1
    assert counts == pytest.approx([180, 10, 10], abs=2)
