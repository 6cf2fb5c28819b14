"""Finds which icon of a style a picture looks like, by its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from imagen_jax.data.images import resize_uint8

# Side in pixels at which pictures are compared: so small that a moved edge costs little.
SIDE = 32


def centred(picture: np.ndarray) -> np.ndarray:
    """A picture `[S, S, 3]` uint8 at `SIDE`, its content in the middle: `[SIDE^2 * 3]` float32.

    The content is what differs from white; its centre of mass is moved to that of the picture by
    whole pixels of the given size, so that a place that is a little off does not count.
    """
    side = picture.shape[0]
    ink = (255.0 - picture.astype(np.float32)).mean(axis=-1)
    if total := ink.sum():
        middle = (side - 1) / 2.0
        places = np.arange(side)
        down = round(middle - float(ink.sum(axis=1) @ places / total))
        across = round(middle - float(ink.sum(axis=0) @ places / total))
        picture = _shift(picture, down, across)
    return resize_uint8(picture, SIDE, SIDE).reshape(-1).astype(np.float32)


def _shift(picture: np.ndarray, down: int, across: int) -> np.ndarray:
    """The picture moved down and to the right, white where nothing was."""
    moved = np.roll(picture, (down, across), axis=(0, 1))
    height, width = picture.shape[:2]
    rows, columns = np.arange(height) - down, np.arange(width) - across
    outside = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
    return np.where(outside[..., None], np.uint8(255), moved)


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """True pictures of one style.

    Attributes:
      keys: of the pictures.
      values: `[N, SIDE * SIDE * 3]` float32, see `centred`.
    """

    keys: tuple[str, ...]
    values: np.ndarray

    def nearest(self, picture: np.ndarray, key: str, own: np.ndarray, others: int) -> str:
        """The key of the true picture that is nearest to a picture.

        Args:
          picture: `[H, W, 3]` uint8.
          key, own: the true picture that it should show and its key; `own` need not be in the
            gallery. It wins ties, since icons may be equal at `SIDE`.
          others: pictures of the gallery that it is compared with beside `own`, at most.
        """
        rows = [row for row, other in enumerate(self.keys) if other != key][:others]
        values = np.concatenate([centred(own)[None], self.values[rows]])
        distances = np.square(values - centred(picture)).mean(axis=1)
        return [key, *(self.keys[row] for row in rows)][int(distances.argmin())]


def make_gallery(keys: Sequence[str], pictures: Sequence[np.ndarray]) -> Gallery:
    """The gallery of true pictures, each `[H, W, 3]` uint8."""
    return Gallery(tuple(keys), np.stack([centred(picture) for picture in pictures]))
