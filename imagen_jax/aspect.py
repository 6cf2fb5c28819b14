"""Aspect ratios as text: "width:height"."""

from __future__ import annotations

import math
import re

from imagen_jax.errors import UserError, brief

SQUARE = "1:1"


def parse_aspect(text: str, what: str) -> tuple[int, int]:
    """Width and height of "3:2", in lowest terms. Raises UserError, which names `what`."""
    match = re.fullmatch(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})", str(text).strip())
    if match is None:
        raise UserError(
            f"{what}: {brief(text)} is no aspect ratio; write width:height in whole numbers, "
            "such as 3:2"
        )
    width, height = int(match[1]), int(match[2])
    divisor = math.gcd(width, height)
    return width // divisor, height // divisor
