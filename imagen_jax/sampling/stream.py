"""The order in which a cascade draws: pictures flow through all stages in bounded memory.

Each stage gathers low-resolution pictures from the stage before until it has a batch of them. So no
more than one batch a stage is in memory, and finished pictures appear from the start. The batches
of a stage all have one size: the last one is filled up, and nothing is compiled again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np


class Shelf(Protocol):
    """Where drawn pictures go, and where those that were drawn before are found."""

    def has(self, stage: str, row: int) -> bool:
        """Whether the picture of a stage is there already."""

    def read(self, stage: str, row: int) -> np.ndarray:
        """A picture that is there, `[H, W, 3]` uint8."""

    def write(self, stage: str, row: int, picture: np.ndarray) -> None:
        """Keeps a picture, `[H, W, 3]` uint8."""


@dataclasses.dataclass(frozen=True)
class StageBatches:
    """How a stage draws.

    Attributes:
      name: of the stage.
      size: pictures of a batch.
      draw: called with the rows of a batch and their low-resolution pictures `[B, h, w, 3]` (None
        for a base stage); returns `[B, H, W, 3]` uint8.
    """

    name: str
    size: int
    draw: Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def missing_rows(shelf: Shelf, stage: str, total: int) -> list[int]:
    """The rows whose pictures of a stage are not there yet."""
    return [row for row in range(total) if not shelf.has(stage, row)]


def draw_missing(
    stages: Sequence[StageBatches],
    total: int,
    low_res: np.ndarray | None,
    shelf: Shelf,
    drawn: Callable[[str, int], None],
) -> None:
    """Draws the pictures that `shelf` lacks, each stage from the pictures of the one before.

    Args:
      stages: in the order of the cascade.
      total: number of rows.
      low_res: `[h, w, 3]` uint8, what the first stage enlarges; None for a base stage.
      shelf: gets each picture as soon as its batch is drawn.
      drawn: called with the stage and the number of its pictures that were added.
    """
    missing = [missing_rows(shelf, stage.name, total) for stage in stages]
    source: Iterator[_Item] = iter([_Item(row, low_res) for row in missing[0]])
    for number, stage in enumerate(stages):
        after = missing[number + 1] if number + 1 < len(stages) else []
        source = _through(stage, source, missing[number], after, shelf, drawn)
    for _ in source:
        pass


@dataclasses.dataclass(frozen=True)
class _Item:
    """A row on its way, with the picture of the stage before."""

    row: int
    picture: np.ndarray | None


def _through(
    stage: StageBatches,
    source: Iterator[_Item],
    missing: Sequence[int],
    wanted: Sequence[int],
    shelf: Shelf,
    drawn: Callable[[str, int], None],
) -> Iterator[_Item]:
    """Draws a stage's pictures from `source`; yields those of the rows `wanted`."""
    wanted_rows, drawn_here = set(wanted), set(missing)
    for row in wanted:
        if row not in drawn_here:
            yield _Item(row, shelf.read(stage.name, row))
    batch: list[_Item] = []
    for item in source:
        batch.append(item)
        if len(batch) == stage.size:
            yield from _draw(stage, batch, wanted_rows, shelf, drawn)
            batch = []
    if batch:
        yield from _draw(stage, batch, wanted_rows, shelf, drawn)


def _draw(
    stage: StageBatches,
    batch: Sequence[_Item],
    wanted: set[int],
    shelf: Shelf,
    drawn: Callable[[str, int], None],
) -> Iterator[_Item]:
    filled = [*batch, *[batch[-1]] * (stage.size - len(batch))]
    low_res = None
    if filled[0].picture is not None:
        low_res = np.stack([item.picture for item in filled])
    pictures = stage.draw(np.array([item.row for item in filled]), low_res)
    for item, picture in zip(batch, pictures, strict=False):
        shelf.write(stage.name, item.row, picture)
    drawn(stage.name, len(batch))
    for item, picture in zip(batch, pictures, strict=False):
        if item.row in wanted:
            yield _Item(item.row, picture)
