"""Renders scenes by signed distances, with analytic anti-aliasing.

Each shape is a function of (x, y), rotated and in units of the radius of its bounding circle. It is
negative inside the shape, and its slope across the edge is 1. The coverage of a pixel is
`clip(1/2 - distance in pixels, 0, 1)`: edges are one pixel wide at any resolution, and a scene
looks the same at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS, Object, Scene
from imagen_jax.errors import UserError

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def render(scene: Scene, size: int) -> np.ndarray:
    """Draws the scene as `[size, size, 3]` uint8.

    Raises:
      UserError: the size is less than 8 pixels.
    """
    if size < 8:
        raise UserError(f"shapes cannot be drawn at {size}x{size} pixels; use 8 or more")
    image = np.empty((size, size, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        _draw(image, item)
    return (image + 0.5).astype(np.uint8)


def _draw(image: np.ndarray, item: Object) -> None:
    """Draws the object over the picture, touching only the pixels around it."""
    size = image.shape[0]
    reach = item.radius * size + 1.0
    x0, x1 = _pixel_range(item.x * size, reach, size)
    y0, y1 = _pixel_range(item.y * size, reach, size)
    # Centres of pixels, in radii from the centre of the object.
    scale = 1.0 / (item.radius * size)
    x = ((np.arange(x0, x1, dtype=np.float32) + 0.5) - item.x * size)[None, :] * scale
    y = ((np.arange(y0, y1, dtype=np.float32) + 0.5) - item.y * size)[:, None] * scale
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    distance = DISTANCES[item.shape](cos * x + sin * y, cos * y - sin * x)
    coverage = np.clip(0.5 - distance / scale, 0.0, 1.0)[..., None]
    region = image[y0:y1, x0:x1]
    region += coverage * (np.array(COLOURS[item.colour], np.float32) - region)


def _pixel_range(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(int(centre - reach), 0), min(int(centre + reach) + 1, size)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 1.0


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(y, math.sqrt(0.75) * np.abs(x) - 0.5 * y) - 0.5


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Ten mirror images of one edge, from an outer corner (at radius 1, on top) to an inner corner.
    sector = math.pi / 5.0
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - 2.0 * sector * np.round(angle / (2.0 * sector)))
    radius = np.sqrt(x * x + y * y)
    inner = 0.45
    edge_x, edge_y = inner * math.cos(sector) - 1.0, inner * math.sin(sector)
    length = math.hypot(edge_x, edge_y)
    normal_x, normal_y = edge_y / length, -edge_x / length
    return normal_x * (radius * np.cos(angle) - 1.0) + normal_y * radius * np.sin(angle)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square on its corner with a half disc on each upper edge. The bounding circle has a radius
    # of 1.783 half sides, and its centre lies 0.37 half sides above that of the square.
    half = 1.0 / 1.783
    y = y - 0.37 * half
    u, v = math.sqrt(0.5) * (np.abs(x) - y), math.sqrt(0.5) * (np.abs(x) + y)
    square = np.maximum(np.abs(u), np.abs(v)) - half
    disc = np.sqrt((u - half) ** 2 + v**2) - half
    return np.minimum(square, disc)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    width = 0.32
    length = math.sqrt(1.0 - width**2)
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - length, np.minimum(x, y) - width)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.76) - 0.24


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bite = 0.78 - np.sqrt((x - 0.5) ** 2 + y * y)
    return np.maximum(_circle(x, y), bite)


DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
}
