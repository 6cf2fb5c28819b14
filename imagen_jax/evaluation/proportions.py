"""Shares with confidence intervals, and McNemar's exact test of two shares of the same prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Share:
    """`hits` of `total`; the share and the limits of Wilson's 95 % interval are in [0, 1]."""

    hits: int
    total: int
    share: float
    low: float
    high: float


def share(hits: Sequence[bool]) -> Share:
    """The share of True, with Wilson's interval (1927), which stays in [0, 1]."""
    from scipy.stats import binomtest

    count, total = sum(hits), len(hits)
    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Share(count, total, count / total, float(interval.low), float(interval.high))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two results for each of the same prompts.

    Attributes:
      total: prompts.
      difference: share of `after` minus share of `before`.
      gained: prompts that are right in `after` alone.
      lost: prompts that are right in `before` alone.
      p: p-value of McNemar's exact two-sided test that gains and losses are equally likely.
    """

    total: int
    difference: float
    gained: int
    lost: int
    p: float


def paired(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Compares two results prompt by prompt (McNemar 1947, exact)."""
    from scipy.stats import binomtest

    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Paired(len(before), (gained - lost) / len(before), gained, lost, float(p))
