"""Colour, clipping and diversity of pictures: what guidance and thresholding change."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np


def saturation(picture: np.ndarray) -> float:
    """Mean saturation of HSV, (max - min) / max of each pixel (0 where black), in [0, 1].

    Args:
      picture: `[H, W, 3]` uint8.
    """
    high = picture.max(axis=-1).astype(np.float64)
    low = picture.min(axis=-1)
    return float(np.mean((high - low) / np.maximum(high, 1.0)))


def colourfulness(picture: np.ndarray) -> float:
    """Colourfulness M of Hasler and Suesstrunk (2003): 0 is grey, above about 109 extreme.

    Args:
      picture: `[H, W, 3]` uint8.
    """
    red, green, blue = np.moveaxis(picture.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def clipped_share(picture: np.ndarray) -> float:
    """Share of pixels with a channel at 0 or 255, where clipped values of a sampler end up.

    True pictures have such pixels too (white), so compare with theirs.

    Args:
      picture: `[H, W, 3]` uint8.
    """
    return float(np.mean(((picture == 0) | (picture == 255)).any(axis=-1)))


def mean_statistics(pictures: Iterable[np.ndarray]) -> dict[str, float]:
    """Means of saturation, colourfulness and clipped share over pictures `[H, W, 3]` uint8."""
    rows = [(saturation(p), colourfulness(p), clipped_share(p)) for p in pictures]
    means = np.mean(rows, axis=0)
    names = ("saturation", "colourfulness", "clipped_share")
    return dict(zip(names, map(float, means), strict=True))


def diversity(pictures: np.ndarray) -> float:
    """Mean over pairs of the root-mean-square difference, in units of 1/255.

    Args:
      pictures: `[B, H, W, 3]` uint8, at least two, all of one prompt.
    """
    values = pictures.astype(np.float64)
    pairs = itertools.combinations(values, 2)
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs]))
