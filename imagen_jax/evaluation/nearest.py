"""The training picture nearest to a picture: does the cascade draw, or does it remember?"""

from __future__ import annotations

import dataclasses

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.images import resize_uint8
from imagen_jax.data.open import load_source
from imagen_jax.data.source import BadItem

# Pictures are compared at this side, where a moved edge costs little.
SIDE = 16
# Of a larger training set so many pictures, evenly spread, are looked through.
MOST_PICTURES = 20_000


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingPictures:
    """The training set, small.

    Attributes:
      items: `[M]` int, the items of the source that were read.
      values: `[M, SIDE * SIDE * 3]` float32 in [0, 255].
      total: how many pictures the set has.
    """

    items: np.ndarray
    values: np.ndarray
    total: int


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An item of the training set and its root-mean-square distance in units of 1/255."""

    item: int
    distance: float


def load_training_pictures(data: DataConfig, most: int = MOST_PICTURES) -> TrainingPictures:
    """Reads up to `most` training pictures, evenly spread; unreadable ones are left out."""
    source = load_source(data, "train", SIDE)
    stride = -(-len(source) // most)
    items, values = [], []
    for index in range(0, len(source), stride):
        try:
            values.append(source.item(index).image.reshape(-1).astype(np.float32))
        except BadItem:
            continue
        items.append(index)
    return TrainingPictures(np.array(items), np.stack(values), len(source))


def nearest(picture: np.ndarray, training: TrainingPictures) -> Neighbour:
    """The training picture nearest to `[H, W, 3]` uint8 in pixels at `SIDE`."""
    small = resize_uint8(picture, SIDE, SIDE).reshape(-1).astype(np.float32)
    squares = np.square(training.values - small).mean(axis=1)
    row = int(squares.argmin())
    return Neighbour(int(training.items[row]), float(np.sqrt(squares[row])))
