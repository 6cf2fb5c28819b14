"""Finds the shape of a blob by analysis by synthesis.

Every shape of the vocabulary is drawn over the blob with the distance functions of the renderer, at
its best position, radius, angle and softness. The shape that leaves least unexplained wins. The
distance of its outline from that of the blob shows whether the blob is any of the shapes.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from scipy import ndimage

from imagen_jax.data.builtin.shapes.rendering import DISTANCES

# Order of the rotational symmetry of each shape; 0 for any angle.
_SYMMETRY = {
    "circle": 0,
    "square": 4,
    "triangle": 3,
    "star": 5,
    "heart": 1,
    "cross": 4,
    "ring": 0,
    "crescent": 1,
}
# Step of the first search over the angle, in radians; the refinement covers half a step.
_ANGLE_STEP = math.radians(15)
# Standard deviation in pixels of the blur that a picture may have. At 32x32 a blurred small star is
# a disc with faint points, so shapes must be compared blurred too.
_BLUR = 0.7
# From the picture as drawn (0) to blurred (1), and a little beyond; the start of the search.
_SOFTNESS = 0.5
_SOFTNESS_RANGE = (0.0, 1.5)
# Points of the first search, (y, x) `[2, P]`, in units of the square root of the blob's area. They
# reach to the farthest tip and are less than a pixel apart for small objects at 32x32. Edges of the
# templates are ramps as wide as those of an object of medium size.
_CELL = 0.15
_GRID = np.mgrid[-1.35:1.36:_CELL, -1.35:1.36:_CELL].reshape(2, -1)
_TEMPLATE_RAMP = 0.2
# Shapes are refined if they leave at most this much more unexplained than the best one, as a share
# of the blob's area.
_CONTENDERS = 0.15
_REFINEMENTS = 6
# Refinement ends when no parameter changes by more than about this many pixels.
_CONVERGED = 0.03
# Refinement ends early with more displacement than this: the blob does not have this shape.
_POOR = 0.1
# With less displacement than this no other shape can fit better, see `Fit`.
_PERFECT = 0.005


@dataclasses.dataclass(frozen=True)
class Fit:
    """A shape laid over a blob.

    Attributes:
      shape: key of `SHAPES`.
      x, y: centre of the bounding circle, in pixels.
      radius: of the bounding circle, in pixels.
      angle: clockwise, in radians.
      unexplained: sum of the squared differences between the coverage of the blob and of the
        shape, in pixels, less the expected part of noise. For crisp masks this is the area in which
        they differ.
      displacement: mean distance of the blob's outline from the shape's, in radii (`unexplained`
        over the length of the outline).
      coverage: `[H, W]` float32 in [0, 1], the shape as drawn.
    """

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    unexplained: float
    displacement: float
    coverage: np.ndarray


def fit_shapes(coverage: np.ndarray, weight: np.ndarray, noise: float) -> list[Fit]:
    """Fits of the best shape and those close to it, best first.

    Args:
      coverage: `[H, W]` float32, share of each pixel that the blob covers, not clipped.
      weight: `[H, W]` float32, 0 where a pixel is not to be compared, else 1.
      noise: standard deviation of `coverage` on the background, which counts as no error.
    """
    height, width = coverage.shape
    x = np.arange(width, dtype=np.float32)[None, None, :] + 0.5
    y = np.arange(height, dtype=np.float32)[None, :, None] + 0.5
    # The centre is taken over solid pixels alone: distant noise would move it.
    solid = np.where(coverage * weight > 0.25, np.minimum(coverage, 1.0), 0.0)
    mass = float(solid.sum())
    centre = float((solid * x[0]).sum()) / mass, float((solid * y[0]).sum()) / mass

    starts = _search(coverage, weight, mass, centre)
    closest = min(error for error, _ in starts.values())
    fits = []
    for shape, (error, start) in sorted(starts.items(), key=lambda item: item[1][0]):
        if error > closest + _CONTENDERS * mass:
            break
        fits.append(_refine(shape, start, x, y, coverage, weight, noise))
        if fits[-1].displacement < _PERFECT:
            break
    return sorted(fits, key=lambda fit: fit.unexplained)


def _search(
    coverage: np.ndarray, weight: np.ndarray, mass: float, centre: tuple[float, float]
) -> dict[str, tuple[float, np.ndarray]]:
    """For each shape the unexplained part at its best angle, and `[5]` parameters to refine.

    The blob is scaled to area 1 around its centre of mass and compared with the templates.
    """
    scale = math.sqrt(mass)
    # Centres of pixels are at half-integers, array elements at integers.
    points = np.stack([centre[1] + _GRID[0] * scale, centre[0] + _GRID[1] * scale]) - 0.5
    values = ndimage.map_coordinates(coverage, points, order=1, mode="nearest")
    known = ndimage.map_coordinates(weight, points, order=0, mode="constant")
    errors_by_shape = {}
    for shape in DISTANCES:
        templates, params = _templates(shape)
        errors = (templates - values) ** 2 @ known
        best = int(errors.argmin())
        x, y, radius, angle = params[best]
        start = centre[0] + x * scale, centre[1] + y * scale, radius * scale, angle, _SOFTNESS
        errors_by_shape[shape] = float(errors[best]) * _CELL**2 * mass, np.array(start, np.float32)
    return errors_by_shape


@functools.cache
def _templates(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """The shape at all angles, with area 1 and its centre of mass at the origin.

    Returns:
      Coverage `[K, P]` at the points of the grid, and x, y, radius, angle `[K, 4]` of each.
    """
    area, _, off_x, off_y = _moments(shape)
    radius = 1.0 / math.sqrt(area)
    turns = _SYMMETRY[shape]
    steps = round(2.0 * math.pi / turns / _ANGLE_STEP) if turns else 1
    angles = 2.0 * math.pi / max(turns, 1) * np.arange(steps) / steps
    cos, sin = np.cos(angles), np.sin(angles)
    centre_x = -radius * (cos * off_x - sin * off_y)
    centre_y = -radius * (sin * off_x + cos * off_y)
    x = (_GRID[1][None] - centre_x[:, None]) / radius
    y = (_GRID[0][None] - centre_y[:, None]) / radius
    cos, sin = cos[:, None], sin[:, None]
    distance = radius * DISTANCES[shape](cos * x + sin * y, cos * y - sin * x)
    drawn = np.clip(0.5 - distance / _TEMPLATE_RAMP, 0.0, 1.0).astype(np.float32)
    return drawn, np.stack([centre_x, centre_y, np.full(steps, radius), angles], axis=1)


@functools.cache
def _moments(shape: str) -> tuple[float, float, float, float]:
    """Area, length of the outline and centre of mass (x, y) of the shape of radius 1."""
    cell, band = 0.004, 0.02
    axis = np.arange(-1.2 + cell / 2, 1.2, cell, np.float32)
    x, y = np.meshgrid(axis, axis)
    distance = DISTANCES[shape](x, y)
    inside = distance < 0.0
    length = float((np.abs(distance) < band).sum()) * cell**2 / (2.0 * band)
    return float(inside.sum()) * cell**2, length, float(x[inside].mean()), float(y[inside].mean())


def _draw(shape: str, params: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coverage `[K, H, W]` of the shape at each of `params` `[K, 5]`, as in the renderer."""
    centre_x, centre_y, radius, angle, softness = (p[:, None, None] for p in params.T)
    x, y = (x - centre_x) / radius, (y - centre_y) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    distance = DISTANCES[shape](cos * x + sin * y, cos * y - sin * x)
    crisp = np.clip(0.5 - distance * radius, 0.0, 1.0)
    blurred = _blur_matrix(crisp.shape[1]) @ crisp @ _blur_matrix(crisp.shape[2]).T
    return crisp + softness * (blurred - crisp)


@functools.cache
def _blur_matrix(length: int) -> np.ndarray:
    """A Gaussian blur along one axis, `[length, length]`; the ends are extended."""
    return ndimage.gaussian_filter1d(np.eye(length, dtype=np.float32), _BLUR, 0, mode="nearest")


def _unexplained(drawn: np.ndarray, coverage: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`[K]` sums of squared differences."""
    difference = (drawn - coverage) * weight
    return np.einsum("khw,khw->k", difference, difference)


def _refine(
    shape: str,
    start: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    coverage: np.ndarray,
    weight: np.ndarray,
    noise: float,
) -> Fit:
    """Damped Gauss-Newton steps on position, radius, angle and softness; returns the best."""
    start_radius = float(start[2])
    # Finite differences: small against the object, large against the kinks of a clipped ramp.
    moves = np.diag(np.array([0.3, 0.3, 0.03 * start_radius, 0.05, 0.3], np.float32))
    params, best, converged = start, (math.inf, start, start), False
    _, outline, _, _ = _moments(shape)
    poor = _POOR * outline * start_radius**2
    for step in range(_REFINEMENTS + 1):
        last = step == _REFINEMENTS or converged
        drawn = _draw(shape, params[None] if last else np.stack([params, *(params + moves)]), x, y)
        error = float(_unexplained(drawn[:1], coverage, weight)[0])
        if error < best[0]:
            best = error, params, drawn[0]
        if last or (step == 2 and best[0] > poor):
            break
        # In units of the differences, so that one damping suits all parameters.
        slopes = ((drawn[1:] - drawn[:1]) * weight).reshape(len(moves), -1)
        normal = slopes @ slopes.T
        normal += np.diag(0.02 * np.diag(normal) + 1e-3)
        gap = ((coverage - drawn[0]) * weight).reshape(-1)
        change = np.clip(np.linalg.solve(normal, slopes @ gap), -4.0, 4.0)
        converged = float(np.abs(change).max()) * moves[0, 0] < _CONVERGED
        params = params + change @ moves
        params[2] = np.clip(params[2], 0.6 * start_radius, 1.6 * start_radius)
        params[4] = np.clip(params[4], *_SOFTNESS_RANGE)
    error, params, drawn = best
    error = max(error - noise**2 * float(weight.sum()), 0.0)
    centre_x, centre_y, radius, angle = (float(p) for p in params[:4])
    return Fit(
        shape, centre_x, centre_y, radius, angle, error, error / (outline * radius**2), drawn
    )
