"""Aspect-ratio buckets: the shapes in which the stages of a cascade see and draw pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from imagen_jax.aspect import SQUARE, parse_aspect
from imagen_jax.config.stage import StageConfig
from imagen_jax.errors import UserError

# How far rounding to whole strides may move a shape from the requested one, as factors.
MAX_ASPECT_CHANGE = 1.25
MAX_AREA_CHANGE = 1.5


def shape_unit(stages: Sequence[StageConfig]) -> int:
    """What the sides of the first stage's pictures must be multiples of for every stage to run."""
    units = []
    for stage in stages:
        enlarged = stage.resolution // stages[0].resolution
        stride = stage.model.total_stride
        units.append(stride // math.gcd(stride, enlarged))
    return math.lcm(*units)


def bucket_shapes(
    stages: Sequence[StageConfig], aspects: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """The shapes (H, W) of the first stage's pictures, by aspect ratio as "width:height".

    Each has about as many pixels as the square. Sides are multiples of all that the networks divide
    them by; the other stages' shapes are these, enlarged.

    Args:
      stages: from the lowest resolution to the highest.
      aspects: `data.aspect_buckets`.

    Raises:
      UserError: a bucket that no shape fits, two with the same shape, or none for the square.
    """
    what = "data.aspect_buckets"
    first, unit = stages[0].resolution, shape_unit(stages)
    if first % unit:
        raise UserError(
            f"{what}: the first stage's resolution {first} is not a multiple of {unit}, as the "
            "strides of the stages need: change the resolution or the number of levels"
        )
    shapes: dict[str, tuple[int, int]] = {}
    for text in aspects:
        across, down = parse_aspect(text, what)
        height, width = (
            max(1, round(first * math.sqrt(ratio) / unit)) * unit
            for ratio in (down / across, across / down)
        )
        if _ratio(width * down, height * across) > MAX_ASPECT_CHANGE or (
            _ratio(width * height, first * first) > MAX_AREA_CHANGE
        ):
            raise UserError(
                f"{what}: {text} has no shape near {first}x{first} whose sides are multiples of "
                f"{unit} (the nearest is {width}x{height}): leave it out"
            )
        aspect = f"{across}:{down}"
        for other, shape in shapes.items():
            if shape == (height, width):
                raise UserError(
                    f"{what}: {other} and {aspect} both come to {width}x{height}, since sides are "
                    f"multiples of {unit}: leave one out"
                )
        shapes[aspect] = (height, width)
    if SQUARE not in shapes:
        raise UserError(
            f"{what}={tuple(aspects)} lacks {SQUARE!r}: add it, samples are square by default (the "
            "bucket may stay empty)"
        )
    return shapes


def _ratio(a: float, b: float) -> float:
    return max(a, b) / min(a, b)
