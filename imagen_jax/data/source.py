"""The one interface of everything that pictures and captions come from."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np

SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture `[S, S, 3]` uint8 and its caption; training draws one of all it has."""

    image: np.ndarray
    caption: str
    other_captions: tuple[str, ...] = ()


class BadItem(Exception):
    """An item cannot be read (a truncated file, say). Another takes its place in training.

    Args:
      message: what is wrong with which item.
      kind: of the fault, in a few words; they are counted by it.
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind


class FilteredItem(BadItem):
    """An item is whole and not wanted: the configuration filters it out."""


class Source(Protocol):
    """Random access to pictures with captions.

    Attributes:
      endless: the items are drawn on demand and never repeat; `len` is then only a bound. The
        order of a finite source is shuffled in every epoch, an endless one is walked through.
    """

    endless: bool

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """The item at `index` in [0, len), always the same, square at the source's image size.

        Called from several threads at once. Raises BadItem if it cannot be read or is not wanted.
        """
        ...


def hash01(text: str) -> float:
    """A uniform number in [0, 1) that depends on the text alone; splits are made with it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
