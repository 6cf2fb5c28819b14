"""The training picture nearest to a drawn one, which shows whether training was memorised."""

from __future__ import annotations

import dataclasses

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.images import resize_uint8
from imagen_jax.data.open import load_source
from imagen_jax.data.source import BadItem

# Side in pixels at which pictures are compared: so small that a moved edge costs little.
SIDE = 16
# Training pictures to compare with, at most; of a larger set they are evenly spread.
MAX_PICTURES = 20_000


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingPictures:
    """Training pictures at `SIDE`.

    Attributes:
      items: `[M]` int, the items of the source that were read.
      values: `[M, SIDE * SIDE * 3]` float32 in [0, 255].
      total: number of pictures of the whole training set.
    """

    items: np.ndarray
    values: np.ndarray
    total: int


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An item of the training set and its root-mean-square distance in units of 1/255."""

    item: int
    distance: float


def load_training_pictures(data: DataConfig, limit: int = MAX_PICTURES) -> TrainingPictures:
    """Reads up to `limit` training pictures, evenly spread; unreadable ones are left out."""
    source = load_source(data, "train", SIDE)
    stride = -(-len(source) // limit)
    items, values = [], []
    for index in range(0, len(source), stride):
        try:
            values.append(source.item(index).image.reshape(-1).astype(np.float32))
        except BadItem:
            continue
        items.append(index)
    return TrainingPictures(np.array(items), np.stack(values), len(source))


def nearest(picture: np.ndarray, training: TrainingPictures) -> Neighbour:
    """The training picture nearest to `picture` `[H, W, 3]` uint8, by pixels at `SIDE`."""
    small = resize_uint8(picture, SIDE, SIDE).reshape(-1).astype(np.float32)
    squares = np.square(training.values - small).mean(axis=1)
    row = int(squares.argmin())
    return Neighbour(int(training.items[row]), float(np.sqrt(squares[row])))
