"""Pictures sorted into buckets by their aspect ratio, so that a batch can be of one shape.

An item belongs to the bucket whose aspect ratio is nearest to its own, by the ratio of the two.
Each bucket is a source, with epochs of its own: what is said of one source in `pipeline` (each item
once an epoch, what stands in for items that are left out) holds for each bucket.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import logging
import math
import zlib
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from imagen_jax.config import SQUARE, CascadeConfig, stage_shapes
from imagen_jax.data.interleave import nth_batch
from imagen_jax.data.mixing import MixedSource
from imagen_jax.data.open import load_source
from imagen_jax.data.picture_sizes import load_sizes
from imagen_jax.data.records import DecodedRecords
from imagen_jax.data.source import Item, Source
from imagen_jax.errors import UserError

# Longer sides count as this: the comparison of aspect ratios then fits 64 bits.
_LONGEST = 2**20

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """The items of a set that are nearest to one shape, cut to it: a Source.

    Attributes:
      whole: the set.
      indices: `[N]`, which items of it.
      shape: (H, W) of the pictures.
    """

    whole: DecodedRecords
    indices: np.ndarray
    shape: tuple[int, int]
    endless: bool = dataclasses.field(default=False, init=False)

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, index: int) -> Item:
        return self.whole.item_of_shape(int(self.indices[index]), self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class BucketedSource:
    """All buckets that have items: a Source, one bucket after the other.

    Attributes:
      aspects: of the buckets, as the config writes them.
      shapes: (H, W) of the pictures in each.
      buckets: a source each.
      shares: of the buckets among the examples, as whole numbers.
      digest: of which item is in which bucket; processes of one job must agree on it.
    """

    aspects: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    buckets: tuple[Source, ...]
    shares: tuple[int, ...]
    digest: int
    endless: bool = dataclasses.field(default=False, init=False)

    @property
    def ends(self) -> list[int]:
        """The index behind the last item of each bucket."""
        return list(itertools.accumulate(len(bucket) for bucket in self.buckets))

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def item(self, index: int) -> Item:
        ends = self.ends
        number = bisect.bisect_right(ends, index)
        return self.buckets[number].item(index - (ends[number] - len(self.buckets[number])))

    def nth_batch(self, number: int) -> tuple[int, int]:
        """Of batch `number` of a run: its bucket, and how many came from there before it."""
        return nth_batch(self.shares, number)

    def mean(self, values: Mapping[tuple[int, int], float]) -> float:
        """The mean over the examples of what depends on their shapes."""
        total = sum(
            share * values[shape] for share, shape in zip(self.shares, self.shapes, strict=True)
        )
        return total / sum(self.shares)

    def describe(self) -> str:
        """For example "1:1 64x64 (1,234 pictures), 3:2 80x56 (17 pictures)"; width x height."""
        return ", ".join(
            f"{aspect} {width}x{height} ({len(bucket):,} pictures)"
            for aspect, (height, width), bucket in zip(
                self.aspects, self.shapes, self.buckets, strict=True
            )
        )


def load_stage_source(config: CascadeConfig, name: str, split: str) -> Source:
    """What a stage is trained on or validated with: in buckets if the config has any.

    Raises:
      UserError: see `load_source`.
    """
    source = load_source(config.data, split, config.stages[name].resolution)
    if not config.data.aspect_buckets or not len(source):
        return source
    return in_buckets(source, stage_shapes(config, name))


def in_buckets(source: Source, shapes: Mapping[str, tuple[int, int]]) -> BucketedSource:
    """Sorts the items of a stored set, or of a mix of them; reads their sizes if they are new.

    Args:
      source: `DecodedRecords`, or a mix of such.
      shapes: (H, W) by aspect ratio, the square among them: what cannot be read belongs there.
    """
    is_mix = isinstance(source, MixedSource)
    parts = source.parts if is_mix else (source,)
    weights = source.weights if is_mix else (1.0,)
    if not all(isinstance(part, DecodedRecords) for part in parts):
        raise UserError("config.data.aspect_buckets needs stored pictures, not drawn ones")
    members: dict[str, list[tuple[Bucket, Fraction]]] = {aspect: [] for aspect in shapes}
    digest = 0
    for part, weight in zip(parts, weights, strict=True):
        nearest = nearest_shape(load_sizes(part.records), shapes)
        digest = zlib.crc32(nearest.tobytes(), digest)
        # Epochs of a set alone are of all its items; in a mix, each part has its share.
        each = Fraction(weight) / len(part) if is_mix else Fraction(1)
        for number, (aspect, shape) in enumerate(shapes.items()):
            indices = np.flatnonzero(nearest == number)
            if len(part) <= np.iinfo(np.uint32).max:
                indices = indices.astype(np.uint32)
            if len(indices):
                members[aspect].append((Bucket(part, indices, shape), each * len(indices)))
    for aspect, found in members.items():
        if not found and aspect != SQUARE:
            logger.warning("no picture is nearest to the bucket %s", aspect)
    members = {aspect: found for aspect, found in members.items() if found}
    shares = [sum(share for _, share in found) for found in members.values()]
    scale = math.lcm(*(share.denominator for share in shares))
    whole = [int(share * scale) for share in shares]
    return BucketedSource(
        aspects=tuple(members),
        shapes=tuple(shapes[aspect] for aspect in members),
        buckets=tuple(_joined(found, is_mix) for found in members.values()),
        shares=tuple(share // math.gcd(*whole) for share in whole),
        digest=digest,
    )


def _joined(found: list[tuple[Bucket, Fraction]], is_mix: bool) -> Source:
    if not is_mix:
        ((bucket, _),) = found
        return bucket
    return MixedSource(
        tuple(bucket for bucket, _ in found), tuple(float(share) for _, share in found)
    )


def nearest_shape(sizes: np.ndarray, shapes: Mapping[str, tuple[int, int]]) -> np.ndarray:
    """The number of the shape nearest to each size, by the ratio of the aspect ratios: `[N]` int16.

    In whole numbers, so that it is the same on every machine.

    Args:
      sizes: `[N, 2]`, width and height; what is 0 counts as square.
      shapes: (H, W) by aspect ratio, the square among them.
    """
    aspects = list(shapes)
    # From the tallest to the widest, each (W, H) in lowest terms.
    ordered = sorted(shapes, key=lambda aspect: Fraction(shapes[aspect][1], shapes[aspect][0]))
    ratios = [Fraction(shapes[aspect][1], shapes[aspect][0]) for aspect in ordered]
    width, height = np.minimum(sizes, _LONGEST).astype(np.int64).T
    unknown = (width < 1) | (height < 1)
    width, height = np.where(unknown, 1, width), np.where(unknown, 1, height)
    place = np.zeros(len(sizes), np.int64)
    for one, other in itertools.pairwise(ratios):
        # The border is the geometric mean of neighbours.
        border = one * other
        place += width**2 * border.denominator > height**2 * border.numerator
    return np.array([aspects.index(aspect) for aspect in ordered], np.int16)[place]
