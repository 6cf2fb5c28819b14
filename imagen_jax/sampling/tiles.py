"""Large pictures in overlapping tiles, as MultiDiffusion (Bar-Tal et al. 2023).

In each denoising step the network sees one window of the noisy picture after the other. The
predictions of x are blended with smooth weights; the sampler sees one picture. Memory is that of a
tile. A window is not the whole: self-attention reaches, and the statistics of group norms are
taken, over the window alone, so that pictures in tiles differ from those drawn at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import check_at_least
from imagen_jax.denoiser import LowRes
from imagen_jax.diffusion.samplers import Denoiser, Prediction
from imagen_jax.diffusion.thresholding import Threshold
from imagen_jax.errors import UserError
from imagen_jax.stage import Stage
from imagen_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a stage's pictures are cut into windows.

    Attributes:
      side: of a window, in pixels of the stage. A picture that is shorter has shorter windows.
      overlap: the least number of pixels that two neighbours share, in [0, side).
      unit: windows begin at multiples of it, see `stage_unit`.

    Raises:
      UserError: a value is out of range, or `unit` does not divide `side`.
    """

    side: int
    overlap: int
    unit: int = 1

    def __post_init__(self) -> None:
        check_at_least("unit", self.unit, 1)
        check_at_least("tile", self.side, 1)
        check_at_least("tile_overlap", self.overlap, 0)
        if self.side % self.unit:
            below = self.side // self.unit * self.unit
            raise UserError(
                f"tile={self.side} must be a multiple of {self.unit}, what the network needs: "
                f"{' or '.join(str(n) for n in (below, below + self.unit) if n)}"
            )
        if self.side - self.overlap < self.unit:
            raise UserError(
                f"tile_overlap={self.overlap} must be at most {self.side - self.unit}: tiles of "
                f"{self.side} begin at least {self.unit} pixels after each other"
            )

    def window(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape (H, W) of the windows in a picture of `shape`."""
        return min(self.side, shape[0]), min(self.side, shape[1])

    def covers(self, shape: tuple[int, int]) -> bool:
        """Whether one window is the whole picture."""
        return self.window(shape) == shape

    def positions(self, length: int) -> list[int]:
        """Where the windows along an axis of `length` pixels begin, evenly spread."""
        units, side = length // self.unit, min(self.side, length) // self.unit
        most = (self.side - self.overlap) // self.unit
        gaps = -(-(units - side) // most)
        return [i * (units - side) // gaps * self.unit for i in range(gaps + 1)] if gaps else [0]

    def weights(self, length: int) -> np.ndarray:
        """The weights of the windows along an axis; at each pixel those of all windows add to 1.

        Returns:
          `[n, side]` float32, one row a window: smooth ramps over the overlap, except at the ends
          of the picture.
        """
        side, positions = min(self.side, length), self.positions(length)
        distance = np.arange(side) + 0.5
        ramp = np.sin(np.pi / 2 * np.minimum(1.0, distance / max(self.overlap, 1))) ** 2
        weights = np.ones((len(positions), side))
        weights[1:] *= ramp
        weights[:-1] *= ramp[::-1]
        total = np.zeros(length)
        for start, row in zip(positions, weights, strict=True):
            total[start : start + side] += row
        rows = [row / total[at : at + side] for at, row in zip(positions, weights, strict=True)]
        return np.array(rows, np.float32)


def stage_unit(stage: Stage) -> int:
    """What divides the sides of all pictures that a stage can draw, in pixels."""
    return math.lcm(stage.config.model.total_stride, stage.factor or 1)


def stage_tiles(stage: Stage, side: int, overlap: int | None = None) -> Tiles:
    """Tiles for a stage.

    Args:
      stage: what draws.
      side, overlap: of `Tiles`; an overlap of None is a quarter of the side.

    Raises:
      UserError: the tiles are smaller than the pictures that the stage was trained on, or do not
        fit the network.
    """
    smallest = stage.config.train_size
    if side < smallest:
        raise UserError(
            f"tile={side}: stage {stage.name!r} was trained on pictures of {smallest} pixels and "
            f"draws no smaller tiles; give at least {smallest}"
        )
    try:
        return Tiles(side, side // 4 if overlap is None else overlap, stage_unit(stage))
    except UserError as error:
        raise UserError(f"stage {stage.name!r}: {error}") from error


def tiled_denoiser(
    make: Callable[[LowRes | None], Denoiser],
    condition: LowRes | None,
    threshold: Threshold,
    tiles: Tiles,
    shape: tuple[int, int],
) -> Denoiser:
    """A denoiser of whole pictures from one of windows.

    Args:
      make: a denoiser, without threshold, from the condition of a window.
      condition: of the whole picture; None for a base stage.
      threshold: applied to the blended x_hat, so that percentiles are those of the picture.
      tiles: how the pictures are cut.
      shape: (H, W) of the pictures.
    """
    height, width = tiles.window(shape)
    # Windows by rows: where they begin, and their weights along both axes.
    tops, lefts = (np.array(tiles.positions(length), np.int32) for length in shape)
    down, across = (tiles.weights(length) for length in shape)
    rows, columns = (axis.ravel() for axis in np.indices((len(tops), len(lefts))))
    windows = tops[rows], lefts[columns], down[rows], across[columns]

    def denoise(z: Array, logsnr: Array) -> Prediction:
        size = z.shape[0], height, width, 3

        def add(x_hat: Array, window: tuple[Array, ...]) -> tuple[Array, None]:
            top, left, down, across = window
            start = 0, top, left, 0

            def cut(picture: Array) -> Array:
                return jax.lax.dynamic_slice(picture, start, size)

            here = condition
            if condition is not None:
                here = LowRes(cut(condition.image), condition.aug_level)
            weight = (down[:, None] * across[None, :])[None, :, :, None]
            share = weight * make(here)(cut(z), logsnr).x_hat
            return jax.lax.dynamic_update_slice(x_hat, cut(x_hat) + share, start), None

        # One window after the other: the network's memory is that of one.
        x_hat, _ = jax.lax.scan(add, jnp.zeros_like(z), windows)
        return Prediction(threshold(x_hat))

    return denoise
