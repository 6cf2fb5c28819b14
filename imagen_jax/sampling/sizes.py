"""Pictures of any size that the levels of the networks allow."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from imagen_jax.errors import UserError, brief
from imagen_jax.models.network import MAX_ATTENTION_BYTES
from imagen_jax.sampling.tiles import Tiles, stage_unit
from imagen_jax.stage import Stage

logger = logging.getLogger("imagen_jax")

# More pixels a side than any picture that is drawn: a mistyped size is refused.
MAX_SIDE = 2**16


def parse_size(size: Any, what: str) -> tuple[int, int]:
    """Width and height of "96x64" or (96, 64). Raises UserError, which names `what`."""
    numbers = size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]{1,6})x([0-9]{1,6})\s*", size)
        numbers = (int(match[1]), int(match[2])) if match else None
    try:
        width, height = numbers
        whole = width == int(width) and height == int(height)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{what}: {brief(size)} is no size; write WIDTHxHEIGHT, such as 96x64")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UserError(f"{what}: {brief(size)}: each side must be in [1, {MAX_SIDE}]")
    return int(width), int(height)


def size_unit(stages: Sequence[Stage]) -> int:
    """What divides the sides of the last stage's pictures, in its pixels.

    Args:
      stages: that follow each other.
    """
    unit, enlargement = 1, 1
    for stage in reversed(stages):
        unit = math.lcm(unit, stage_unit(stage) * enlargement)
        enlargement *= stage.factor or 1
    return unit


def sized_shapes(
    stages: Sequence[Stage],
    size: tuple[int, int],
    tiles: Mapping[str, Tiles],
    trained: Mapping[str, Collection[tuple[int, int]]],
) -> dict[str, tuple[int, int]]:
    """The shape (H, W) of each stage's pictures when the last stage draws pictures of `size`.

    Warns of stages that were not trained on what they will see.

    Args:
      stages: that follow each other.
      size: (width, height) of the last stage's pictures.
      tiles: by stage, of those that draw in tiles.
      trained: by stage, the shapes (H, W) of its training pictures.

    Raises:
      UserError: a side is not divisible by what the stages need (with the nearest sizes), or
        attention over the whole picture would need more memory than any device has.
    """
    unit = size_unit(stages)
    if size[0] % unit or size[1] % unit:
        near = [
            " or ".join(str(n) for n in (side // unit * unit, -(-side // unit) * unit) if n)
            if side % unit
            else str(side)
            for side in size
        ]
        names = ", ".join(stage.name for stage in stages)
        raise UserError(
            f"size={size[0]}x{size[1]}: the stages {names} draw multiples of {unit} pixels; the "
            f"nearest are {near[0]} wide, {near[1]} high"
        )
    shapes, shape = {}, (size[1], size[0])
    for stage in reversed(stages):
        shapes[stage.name] = shape
        window = tiles[stage.name].window(shape) if stage.name in tiles else shape
        _check_attention(stage, window)
        if window not in trained[stage.name]:
            logger.warning(
                "stage %r was not trained on pictures of %dx%d; what it draws may be odd",
                stage.name,
                window[1],
                window[0],
            )
        factor = stage.factor or 1
        shape = shape[0] // factor, shape[1] // factor
    return {stage.name: shapes[stage.name] for stage in stages}


def nearest_inside(size: tuple[int, int], unit: int) -> tuple[int, int]:
    """The largest (width, height) within `size` whose sides are multiples of `unit`.

    Raises:
      UserError: a side is below `unit`.
    """
    if min(size) < unit:
        raise UserError(
            f"the picture is {size[0]}x{size[1]} pixels; each side must be at least {unit}"
        )
    return size[0] // unit * unit, size[1] // unit * unit


def _check_attention(stage: Stage, shape: tuple[int, int]) -> None:
    model = stage.config.model
    for level, channels in enumerate(model.channels):
        pixels = math.prod(side // model.level_stride(level) for side in shape)
        size = 4 * (model.attention_expansion * channels // model.head_dim) * pixels**2
        if model.attends(level) and size > MAX_ATTENTION_BYTES:
            raise UserError(
                f"stage {stage.name!r} would attend over {pixels:,} pixels of a picture of "
                f"{shape[1]}x{shape[0]}: {size / 2**30:.1f} GiB of attention weights. Draw it in "
                f"tiles (--tile={stage.config.resolution}), or draw a smaller one"
            )
