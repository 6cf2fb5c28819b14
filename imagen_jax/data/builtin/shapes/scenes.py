"""Scenes of plain shapes: the vocabulary, what training never shows, and how scenes are drawn.

A scene is a pure function of (seed, index). All random numbers come from `random.Random.random()`,
whose sequence Python guarantees across versions, so that a seed gives the same pictures everywhere.

Coordinates are in units of the picture's width: x to the right, y down, both in [0, 1].
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import random
from collections.abc import Sequence
from typing import TypeVar

from imagen_jax.data.source import SPLITS, hash01
from imagen_jax.errors import UserError

T = TypeVar("T")

# All of these can be distinguished at 32x32 under the rotations that are drawn. (A diamond would
# look like a square, a pentagon like a circle, an oval like a tilted ring.)
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")

# At least 95 apart in RGB (Euclidean distance) from each other and from all backgrounds.
COLOURS = {
    "red": (225, 25, 30),
    "orange": (255, 130, 0),
    "yellow": (255, 225, 0),
    "lime": (150, 235, 30),
    "green": (10, 135, 45),
    "cyan": (0, 200, 220),
    "blue": (15, 80, 235),
    "purple": (145, 25, 170),
    "pink": (255, 115, 190),
    "brown": (120, 65, 25),
}

# Pale, grey or dark, at least 75 apart in RGB from each other.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (145, 145, 145),
    "black": (8, 8, 8),
    "beige": (228, 205, 160),
    "navy": (15, 20, 85),
    "lavender": (200, 185, 240),
}

# Radius of the bounding circle of an object. Gaps between the ranges make the sizes
# distinguishable in pixels.
SIZES = {"small": (0.13, 0.15), "medium": (0.19, 0.22), "large": (0.28, 0.34)}

RELATIONS = ("left of", "right of", "above", "below")
_OPPOSITE = {"right of": "left of", "below": "above"}

KINDS = ("single", "relation", "count")
KIND_SHARES = (0.35, 0.45, 0.2)
MAX_COUNT = 5
HELD_OUT_SHARE = 0.1

MAX_ANGLE = math.pi / 6
MARGIN = 0.02  # between an object and the border
_GAP = 0.05  # between two objects: 1.6 pixels at 32x32, so that equal ones do not merge
# Two objects are related along an axis if their distance along it is this much larger than across
# it, so that the relation along the other axis is not a sensible description.
_DOMINANCE = 1.4


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape: centre (x, y), radius of its bounding circle, rotation in radians (clockwise)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """The contents of a picture.

    Attributes:
      kind: "single"; "relation" (two objects, `objects[0]` is `relation` `objects[1]`); "count"
        (one to five objects of equal shape, colour and size).
      background: key of `BACKGROUNDS`.
      objects: they do not overlap, and lie completely inside the picture.
      relation: one of `RELATIONS` when kind is "relation", else None.
    """

    kind: str
    background: str
    objects: tuple[Object, ...]
    relation: str | None = None


class Draw:
    """Random choices, seeded with any printable values."""

    def __init__(self, *seed: object):
        digest = hashlib.blake2b("/".join(map(str, seed)).encode(), digest_size=8).digest()
        self._next = random.Random(int.from_bytes(digest, "big")).random

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self._next() * len(options))]

    def chance(self, probability: float) -> bool:
        return self._next() < probability


@functools.cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """The (colour, shape) pairs that training never shows.

    For each shape, the tenth of its colours with the lowest hashes. The salt was chosen so that the
    pairs also have different colours.
    """
    share = round(HELD_OUT_SHARE * len(COLOURS))
    pairs: list[tuple[str, str]] = []
    for shape in SHAPES:
        ranked = sorted(COLOURS, key=lambda colour: hash01(f"pair231/{colour}/{shape}"))
        pairs += [(colour, shape) for colour in ranked[:share]]
    return frozenset(pairs)


@functools.cache
def is_held_out_triple(first: tuple[str, str], relation: str, second: tuple[str, str]) -> bool:
    """Whether training never shows this ordered (object, relation, object) triple.

    Objects are (colour, shape). "A right of B" and "B left of A" are the same picture, so both are
    held out or neither.
    """
    if relation in _OPPOSITE:
        first, relation, second = second, _OPPOSITE[relation], first
    return hash01(f"triple/{first}/{relation}/{second}") < HELD_OUT_SHARE


def held_out_reasons(scene: Scene) -> frozenset[str]:
    """Why training never shows the scene: a subset of {"pair", "triple"}, empty if it may do so."""
    pairs = [(o.colour, o.shape) for o in scene.objects]
    reasons = set()
    if any(pair in held_out_pairs() for pair in pairs):
        reasons.add("pair")
    if scene.kind == "relation" and is_held_out_triple(pairs[0], scene.relation, pairs[1]):
        reasons.add("triple")
    return frozenset(reasons)


def scene(seed: int, index: int, split: str = "train", kind: str | None = None) -> Scene:
    """The scene number `index` of the endless sequence `seed`.

    Args:
      seed: of the sequence.
      index: position in the sequence, any integer.
      split: "train" draws nothing that is held out. In "held_out" each scene has a held-out
        colour-shape pair, or is a held-out triple of two objects that training shows (half of
        the scenes of kind "relation").
      kind: one of `KINDS`; None mixes them by `KIND_SHARES`.

    Raises:
      UserError: the split or the kind is unknown.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind of scene is {kind!r}; use one of {', '.join(KINDS)}")
    draw = Draw("scene", seed, index, split, kind)
    kind = kind or _draw_kind(draw)
    if kind == "relation":
        return _relation_scene(draw, split)
    pair = _draw_pair(draw, held_out=split == "held_out")
    if kind == "single":
        return _grouped_scene(draw, kind, pair, count=1, sizes=tuple(SIZES))
    count = draw.choice(range(1, MAX_COUNT + 1))
    # Five medium circles do not fit, nor two large ones.
    sizes = ("small", "medium") if count <= 3 else ("small",)
    return _grouped_scene(draw, kind, pair, count=count, sizes=sizes)


def _draw_kind(draw: Draw) -> str:
    u = draw.uniform(0.0, 1.0)
    for kind, share in zip(KINDS, KIND_SHARES, strict=True):
        u -= share
        if u < 0.0:
            return kind
    return KINDS[-1]


def _draw_pair(draw: Draw, held_out: bool | None = None) -> tuple[str, str]:
    """A (colour, shape) that is held out or not; None: any."""
    while True:
        pair = draw.choice(tuple(COLOURS)), draw.choice(SHAPES)
        if held_out is None or (pair in held_out_pairs()) == held_out:
            return pair


def _grouped_scene(
    draw: Draw, kind: str, pair: tuple[str, str], count: int, sizes: Sequence[str]
) -> Scene:
    background = draw.choice(tuple(BACKGROUNDS))
    size = draw.choice(sizes)
    radius = draw.uniform(*SIZES[size])
    centres = _place_apart(draw, radius, count)
    objects = tuple(_object(draw, pair, size, centre, radius) for centre in centres)
    return Scene(kind, background, objects)


def _relation_scene(draw: Draw, split: str) -> Scene:
    held_out = draw.choice(("pair", "triple")) if split == "held_out" else ""
    while True:
        first, second = _draw_pair(draw), _draw_pair(draw)
        relation = draw.choice(RELATIONS)
        if first == second:
            continue
        pair = first in held_out_pairs() or second in held_out_pairs()
        triple = is_held_out_triple(first, relation, second)
        if (held_out == "pair") == pair and (triple == (held_out == "triple") or pair):
            break
    background = draw.choice(tuple(BACKGROUNDS))
    while True:
        sizes = draw.choice(tuple(SIZES)), draw.choice(tuple(SIZES))
        radii = draw.uniform(*SIZES[sizes[0]]), draw.uniform(*SIZES[sizes[1]])
        if 2.0 * sum(radii) + _GAP + 2.0 * MARGIN < 1.0:  # they fit side by side
            break
    centres = _place_related(draw, relation, radii)
    objects = (
        _object(draw, first, sizes[0], centres[0], radii[0]),
        _object(draw, second, sizes[1], centres[1], radii[1]),
    )
    return Scene("relation", background, objects, relation)


def _object(
    draw: Draw, pair: tuple[str, str], size: str, centre: tuple[float, float], radius: float
) -> Object:
    angle = draw.uniform(-MAX_ANGLE, MAX_ANGLE)
    return Object(pair[1], pair[0], size, centre[0], centre[1], radius, angle)


def _place_apart(draw: Draw, radius: float, count: int) -> list[tuple[float, float]]:
    """Centres of equal circles at least `_GAP` apart; starts over if one of them does not fit."""
    low, high = radius + MARGIN, 1.0 - radius - MARGIN
    closest = 2.0 * radius + _GAP
    while True:
        centres: list[tuple[float, float]] = []
        for _ in range(8 * count):
            x, y = draw.uniform(low, high), draw.uniform(low, high)
            if all(math.hypot(x - a, y - b) >= closest for a, b in centres):
                centres.append((x, y))
                if len(centres) == count:
                    return centres


def _place_related(
    draw: Draw, relation: str, radii: tuple[float, float]
) -> list[tuple[float, float]]:
    """Centres of two objects, at least `_GAP` apart, that are clearly in the relation."""
    # All relations are drawn as "left of": the first object comes first along the axis, and both
    # have any position across it.
    backwards = relation in _OPPOSITE
    r0, r1 = reversed(radii) if backwards else radii
    reach = r0 + r1 + _GAP
    while True:
        a0 = draw.uniform(r0 + MARGIN, 1.0 - r0 - MARGIN)
        a1 = draw.uniform(r1 + MARGIN, 1.0 - r1 - MARGIN)
        c0 = draw.uniform(r0 + MARGIN, 1.0 - r0 - MARGIN)
        c1 = draw.uniform(r1 + MARGIN, 1.0 - r1 - MARGIN)
        along, across = a1 - a0, abs(c1 - c0)
        if along >= _DOMINANCE * across and math.hypot(along, across) >= reach:
            break
    centres = [(a0, c0), (a1, c1)]
    if backwards:
        centres.reverse()
    if relation in ("above", "below"):
        centres = [(c, a) for a, c in centres]
    return centres
