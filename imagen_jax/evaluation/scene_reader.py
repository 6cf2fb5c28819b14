"""Reads a picture of plain shapes back into a scene, from its pixels alone.

The border gives the background. Pixels that differ from it form blobs. A blob is split where it has
several colours ("inks") or thin bridges. Each part is matched to the shapes (`shape_fit`); its
shape is "unknown" where none fits. Thresholds allow for blur, noise, shifted colours and small
distortions.

    scene = read_scene(image)
    [(o.size, o.colour, o.shape) for o in scene.objects]
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS, SIZES
from imagen_jax.data.images import resize_uint8
from imagen_jax.errors import UserError
from imagen_jax.evaluation.shape_fit import Fit, fit_shapes

UNKNOWN = "unknown"
# Side in pixels. In smaller pictures the stroke of a small ring is less than two pixels wide.
MIN_RESOLUTION = 32
# Objects read, the largest first: no caption claims more than five.
MAX_OBJECTS = 8

# Side in pixels to which larger pictures are reduced: more pixels do not help with such objects.
_READ_AT = 64
# Euclidean RGB distance from which two colours differ. Inks are at least 95 from every background;
# noise of 8 per channel reaches 45 once in a million pixels.
_DIFFERENT = 45.0
# Euclidean RGB distance from a named colour from which a colour is unknown. A shift of 8 % moves a
# colour by up to 35; named colours are at least 95 apart (backgrounds 75).
_NAMED = 75.0
# Share of the picture below which a blob is a speck. The smallest object, a small star, has 2.2 %.
_SPECK = 0.004
# The shape of a blob is unknown if the outline of the best shape is displaced by more than
# `_DISPLACED` radii, or by more than `_SLIGHTLY_DISPLACED` while the second best leaves nearly as
# little unexplained (a ratio above `_NEARLY`). True pictures, even blurred, noisy and shifted at
# once, stay below 0.005 at 64x64 and 0.014 at 32x32, and no second shape comes near. Chosen by
# comparing some 150 generated pictures with what was read.
_DISPLACED = 0.044
_SLIGHTLY_DISPLACED = 0.012
_NEARLY = 0.65
# An ink with a smaller share of a blob than this is a seam between two others, or a flaw.
_INK_SHARE = 0.15


@dataclasses.dataclass(frozen=True)
class SeenObject:
    """One object of a picture.

    Attributes:
      shape: key of `SHAPES`, or "unknown".
      colour: key of `COLOURS`, or "unknown".
      size: key of `SIZES`, by the radius of the bounding circle.
      x, y: centre of the bounding circle (of the box, if the shape is "unknown"), in widths of
        the picture.
      box: x0, y0, x1, y1 of the object's pixels, in widths of the picture.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class SeenScene:
    """What a picture shows.

    Attributes:
      background: key of `BACKGROUNDS`, or "unknown".
      objects: the largest first, at most `MAX_OBJECTS`.
    """

    background: str
    objects: tuple[SeenObject, ...]


def read_scene(image: np.ndarray) -> SeenScene:
    """Reads a `[S, S, 3]` uint8 picture, S at least `MIN_RESOLUTION`.

    Raises:
      UserError: another shape, size or dtype.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"a picture is [S, S, 3] uint8; this is {list(image.shape)} {image.dtype}")
    if image.shape[0] != image.shape[1] or image.shape[0] < MIN_RESOLUTION:
        raise UserError(
            f"only square pictures of {MIN_RESOLUTION} or more pixels a side can be read; this has "
            f"{image.shape[0]}x{image.shape[1]}"
        )
    if image.shape[0] > _READ_AT:
        image = resize_uint8(image, _READ_AT, _READ_AT)
    pixels = image.astype(np.float32)
    ground, noise = _background(pixels)
    ink = pixels - ground
    owners, inks = _segment(ink)
    areas = np.bincount(owners[owners >= 0], minlength=len(inks))
    largest = np.argsort(-areas, kind="stable")[:MAX_OBJECTS]
    objects = tuple(_read_object(ink, ground, owners, n, inks[n], noise) for n in largest)
    return SeenScene(_name(ground, BACKGROUNDS), objects)


def _background(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Colour `[3]` of the background, and the standard deviation of its noise per channel."""
    edges = (pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1])
    border = np.concatenate(edges)[::2]
    # The colour that most border pixels are near to: objects may touch the border.
    near = np.linalg.norm(border[:, None] - border[None], axis=-1) < _DIFFERENT
    members = border[near[near.sum(1).argmax()]]
    ground = np.median(members, axis=0)
    noise = 1.4826 * float(np.median(np.abs(members - ground)))  # of a normal distribution
    return ground, noise


def _segment(ink: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Splits the picture into objects.

    Args:
      ink: `[S, S, 3]` float32, difference from the background.

    Returns:
      Owner of each pixel `[S, S]` int, -1 for the background, and each owner's ink `[3]`.
    """
    side = ink.shape[0]
    strength = np.linalg.norm(ink, axis=-1)
    # Full pixels are not much fainter than their neighbours. The others are edges, whose mixed
    # colours could be taken for other inks. Blur leaves a faint bridge between close objects, which
    # must not join them to one blob.
    strongest = ndimage.maximum_filter(strength, 5)
    ridge = strength > 0.8 * strongest
    solid = (strength > _DIFFERENT) & (strength > 0.4 * strongest)
    blobs, _ = ndimage.label(solid, np.ones((3, 3)))
    owners = np.full((side, side), -1)
    inks: list[np.ndarray] = []
    for number, window in enumerate(ndimage.find_objects(blobs)):
        blob = blobs[window] == number + 1
        if blob.sum() < _SPECK * side * side:
            continue
        window_ink = ink[window]
        full = blob & ridge[window]  # empty where a blob lies beside a much stronger one
        colours = _inks(window_ink[full if full.any() else blob])
        # The position of each pixel along the line from the background to each ink, and its
        # distance from that line.
        along = np.stack([window_ink @ c / (c @ c) for c in colours])
        beside = np.stack(
            [
                np.linalg.norm(window_ink - np.clip(a, 0.0, 1.0)[..., None] * c, axis=-1)
                for a, c in zip(along, colours, strict=True)
            ]
        )
        closest = beside.argmin(0)
        for index, colour in enumerate(colours):
            mine = blob & (closest == index) & (along[index] > 0.5)
            parts, found = ndimage.label(mine)
            areas = ndimage.sum_labels(mine, parts, range(1, found + 1))
            for part in np.flatnonzero(areas >= _SPECK * side * side):
                owners[window][parts == part + 1] = len(inks)
                inks.append(colour)
    return owners, inks


def _inks(core: np.ndarray) -> list[np.ndarray]:
    """The colours `[3]` of the full pixels `[N, 3]`, as differences from the background."""
    # Greedy clusters: the colour that most pixels are near to, then that of the remaining pixels.
    # One or two hundred pixels are enough.
    core = core[:: max(len(core) // 100, 1)]
    enough = _INK_SHARE * len(core)
    colours: list[np.ndarray] = []
    while len(core):
        near = np.linalg.norm(core[:, None] - core[None], axis=-1) < _DIFFERENT
        votes = near.sum(0)
        if colours and votes.max() < enough:
            break
        colour = np.median(core[near[:, votes.argmax()]], axis=0)
        colours.append(colour)
        # Up to a third paler or fuller is the same ink under blur.
        along = np.clip(core @ colour / (colour @ colour), 0.7, 1.4)
        core = core[np.linalg.norm(core - along[:, None] * colour, axis=-1) >= _DIFFERENT]
    return colours


def _read_object(
    ink: np.ndarray,
    ground: np.ndarray,
    owners: np.ndarray,
    number: int,
    colour: np.ndarray,
    noise: float,
) -> SeenObject:
    """Describes the object that owns the pixels `owners == number`."""
    side = owners.shape[0]
    mine = owners == number
    rows, columns = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    # A margin for soft edges and for shapes that overlap the blob in part.
    room = 3 + (max(x1 - x0, y1 - y0) // 8)
    window = (
        slice(max(y0 - room, 0), min(y1 + room, side)),
        slice(max(x0 - room, 0), min(x1 + room, side)),
    )
    # Pixels of other objects are not covered by this one; their soft edges have no weight.
    owner = owners[window]
    others = (owner >= 0) & (owner != number)
    _, (near_y, near_x) = ndimage.distance_transform_edt(owner < 0, return_indices=True)
    weight = ((owner[near_y, near_x] == number) | others).astype(np.float32)
    coverage = (ink[window] @ colour / (colour @ colour)).astype(np.float32)
    coverage[others] = 0.0
    fits = fit_shapes(coverage, weight, noise / float(np.linalg.norm(colour)))
    best, shape = fits[0], _shape(fits)
    centre = (best.x + window[1].start, best.y + window[0].start)
    if shape == UNKNOWN:  # its fitted centre means nothing
        centre = (x0 + x1) / 2.0, (y0 + y1) / 2.0
    return SeenObject(
        shape=shape,
        colour=_name(ground + _fitted_ink(ink[window], best, weight), COLOURS),
        size=_size(best.radius / side),
        x=centre[0] / side,
        y=centre[1] / side,
        box=(x0 / side, y0 / side, x1 / side, y1 / side),
    )


def _shape(fits: list[Fit]) -> str:
    """The shape that fits best; "unknown" if the fit is poor or ambiguous."""
    best = fits[0]
    if best.displacement > _DISPLACED:
        return UNKNOWN
    ambiguous = len(fits) > 1 and best.unexplained > _NEARLY * fits[1].unexplained
    if best.displacement > _SLIGHTLY_DISPLACED and ambiguous:
        return UNKNOWN
    return best.shape


def _fitted_ink(ink: np.ndarray, fit: Fit, weight: np.ndarray) -> np.ndarray:
    """The ink `[3]` in the least-squares sense; blur pales even the middle of thin shapes."""
    coverage = fit.coverage * weight
    return np.einsum("hw,hwc->c", coverage, ink) / float((coverage * fit.coverage).sum())


def _name(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    """The name of the nearest colour, "unknown" if none is near."""
    distances = {name: float(np.linalg.norm(colour - value)) for name, value in names.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < _NAMED else UNKNOWN


def _size(radius: float) -> str:
    """The size whose range of radii (in widths of the picture) is nearest."""
    return min(SIZES, key=lambda name: max(SIZES[name][0] - radius, radius - SIZES[name][1]))
