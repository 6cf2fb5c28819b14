"""Sorts pictures into buckets by aspect ratio, so that all pictures of a batch have one shape.

An item belongs to the bucket whose aspect ratio is nearest to its own, by the ratio of the two.
Each bucket is a source with its own epochs: `pipeline` reads each item of a bucket once an epoch,
and replaces an item that is left out by another of the same bucket.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import zlib
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from imagen_jax.config import SQUARE, CascadeConfig
from imagen_jax.data.interleave import nth_batch
from imagen_jax.data.mixing import MixedSource
from imagen_jax.data.open import load_source
from imagen_jax.data.parts import locate
from imagen_jax.data.picture_sizes import load_sizes
from imagen_jax.data.records import DecodedRecords
from imagen_jax.data.source import Item, Source
from imagen_jax.errors import UserError

# Longer sides are reduced to this, so that the comparison of aspect ratios fits into 64 bits.
_LONGEST = 2**20

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """The items of a set that are nearest to one shape, cropped to it: a Source.

    Attributes:
      records: the set.
      indices: `[N]`, the items of the set that are in the bucket.
      shape: (H, W) of the pictures.
    """

    records: DecodedRecords
    indices: np.ndarray
    shape: tuple[int, int]
    endless: bool = dataclasses.field(default=False, init=False)

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, index: int) -> Item:
        return self.records.item_of_shape(int(self.indices[index]), self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class BucketedSource:
    """All buckets that have items: a Source, one bucket after the other.

    Attributes:
      aspects: aspect ratio of each bucket, as in the config.
      shapes: (H, W) of the pictures in each bucket.
      buckets: the source of each bucket.
      shares: of the buckets among the examples, as integers without a common factor.
      digest: checksum of the assignment of items to buckets; all processes of a job must have the
        same.
    """

    aspects: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    buckets: tuple[Source, ...]
    shares: tuple[int, ...]
    digest: int
    endless: bool = dataclasses.field(default=False, init=False)

    @property
    def ends(self) -> list[int]:
        """For each bucket, the index after its last item."""
        return list(itertools.accumulate(len(bucket) for bucket in self.buckets))

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def item(self, index: int) -> Item:
        bucket, within = locate(self.ends, index)
        return self.buckets[bucket].item(within)

    def nth_batch(self, number: int) -> tuple[int, int]:
        """The bucket of batch `number` of a run, and how many earlier batches came from it."""
        return nth_batch(self.shares, number)

    def mean(self, values: Mapping[tuple[int, int], float]) -> float:
        """The mean over all examples of a value given for each shape."""
        total = sum(
            share * values[shape] for share, shape in zip(self.shares, self.shapes, strict=True)
        )
        return total / sum(self.shares)

    def describe(self) -> str:
        """Such as "1:1 64x64 (1,234 pictures), 3:2 80x56 (17 pictures)", as width x height."""
        return ", ".join(
            f"{aspect} {width}x{height} ({len(bucket):,} pictures)"
            for aspect, (height, width), bucket in zip(
                self.aspects, self.shapes, self.buckets, strict=True
            )
        )


def load_stage_source(config: CascadeConfig, name: str, split: str) -> Source:
    """The source that a stage is trained on or validated with, in buckets if the config has any.

    Raises:
      UserError: see `load_source`.
    """
    source = load_source(config.data, split, config.stages[name].resolution)
    if not config.data.aspect_buckets or not len(source):
        return source
    return in_buckets(source, config.shapes(name))


def in_buckets(source: Source, shapes: Mapping[str, tuple[int, int]]) -> BucketedSource:
    """Sorts the items of a stored set, or of a mix of sets, into buckets.

    Reads the sizes of new pictures, see `load_sizes`.

    Args:
      source: `DecodedRecords`, or a mix of such.
      shapes: (H, W) by aspect ratio. The square must be among them; pictures whose size cannot be
        read belong to it.

    Raises:
      UserError: the source draws its pictures.
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
        # In a mix, the items of a part share the weight of the part.
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
    """The index of the shape nearest to each size, by the ratio of aspect ratios: `[N]` int16.

    Computed with integers, so that the result is the same on all machines.

    Args:
      sizes: `[N, 2]`, width and height; a size with a 0 counts as square.
      shapes: (H, W) by aspect ratio, the square among them.
    """
    aspects = list(shapes)
    # From the tallest to the widest.
    ordered = sorted(shapes, key=lambda aspect: Fraction(shapes[aspect][1], shapes[aspect][0]))
    ratios = [Fraction(shapes[aspect][1], shapes[aspect][0]) for aspect in ordered]
    width, height = np.minimum(sizes, _LONGEST).astype(np.int64).T
    unknown = (width < 1) | (height < 1)
    width, height = np.where(unknown, 1, width), np.where(unknown, 1, height)
    place = np.zeros(len(sizes), np.int64)
    for one, other in itertools.pairwise(ratios):
        # The border between two neighbours is their geometric mean.
        border = one * other
        place += width**2 * border.denominator > height**2 * border.numerator
    return np.array([aspects.index(aspect) for aspect in ordered], np.int16)[place]
