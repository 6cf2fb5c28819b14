"""Aspect-ratio buckets: the shapes in which the stages of a cascade see and draw pictures."""

from __future__ import annotations

import math
import re

from imagen_jax.config.settings import CascadeConfig, ModelConfig
from imagen_jax.errors import UserError

SQUARE = "1:1"
# How far rounding to whole strides may take a shape from what was asked for, as factors.
_MOST_ASPECT = 1.25
_MOST_AREA = 1.5


def level_stride(config: ModelConfig, level: int) -> int:
    """The factor between the resolution of the picture and that of a level."""
    if config.kind == "unet":
        return config.patch_size * 2**level
    return config.patch_size * math.prod(config.strides[: level + 1])


def total_stride(config: ModelConfig) -> int:
    """The factor between the resolution of the picture and the network's lowest."""
    return level_stride(config, len(config.channels) - 1)


def parse_aspect(text: str, what: str) -> tuple[int, int]:
    """Width and height of "3:2", in lowest terms. Raises UserError, which names `what`."""
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text.strip())
    if match is None:
        raise UserError(
            f"{what}: {text!r} is no aspect ratio; write width:height in whole numbers, such as 3:2"
        )
    width, height = int(match[1]), int(match[2])
    divisor = math.gcd(width, height)
    return width // divisor, height // divisor


def shape_unit(config: CascadeConfig) -> int:
    """What the sides of the first stage's pictures must be multiples of for every stage to run."""
    stages = list(config.ordered_stages().values())
    units = []
    for stage in stages:
        enlarged = stage.resolution // stages[0].resolution
        stride = total_stride(stage.model)
        units.append(stride // math.gcd(stride, enlarged))
    return math.lcm(*units)


def stage_shapes(config: CascadeConfig, name: str) -> dict[str, tuple[int, int]]:
    """The shapes (H, W) that a stage is trained in, by aspect ratio as "width:height".

    Without buckets the square alone. With them each has about as many pixels as the square, and
    every stage's shape is that of the first stage, enlarged: sides are multiples of all that the
    networks divide them by.

    Raises:
      UserError: buckets that no shape fits, two with the same shape, or none for the square.
    """
    resolution = config.stages[name].resolution
    aspects = config.data.aspect_buckets
    if not aspects:
        return {SQUARE: (resolution, resolution)}
    what = "config.data.aspect_buckets"
    first = next(iter(config.ordered_stages().values())).resolution
    unit = shape_unit(config)
    if not unit or first % unit:
        raise UserError(
            f"{what}: the first stage's resolution {first} is not a multiple of {unit}, which the "
            "strides of the stages ask for: change the resolution or the number of levels"
        )
    shapes: dict[str, tuple[int, int]] = {}
    for text in aspects:
        across, down = parse_aspect(text, what)
        height, width = (
            max(1, round(first * math.sqrt(ratio) / unit)) * unit
            for ratio in (down / across, across / down)
        )
        if _factor(width * down, height * across) > _MOST_ASPECT or (
            _factor(width * height, first * first) > _MOST_AREA
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
            f"{what}={aspects} lacks {SQUARE!r}: add it, samples are square unless you say "
            "otherwise (no picture need be in it)"
        )
    enlarged = resolution // first
    return {aspect: (h * enlarged, w * enlarged) for aspect, (h, w) in shapes.items()}


def _factor(a: float, b: float) -> float:
    return max(a, b) / min(a, b)
