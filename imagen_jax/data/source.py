"""The interface that every source of pictures with captions has."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np

SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture `[H, W, 3]` uint8 with its captions; training draws one of them each time."""

    image: np.ndarray
    caption: str
    other_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions, `caption` first."""
        return (self.caption, *self.other_captions)


def printable(text: str) -> str:
    """The text with bytes that are not UTF-8, as names of files may have, written as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


class BadItem(Exception):
    """An item cannot be read, because its file is truncated, for example.

    Training replaces it by another item.

    Args:
      message: what is wrong with which item.
      kind: the kind of fault in a few words; bad items are counted by kind.
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(printable(message))
        self.kind = kind


class FilteredItem(BadItem):
    """An item can be read, but the filters of the configuration leave it out."""


class Source(Protocol):
    """Random access to pictures with captions.

    Attributes:
      endless: the items are drawn on demand and never repeat; `len` is then only a bound. A finite
        source is shuffled in every epoch, an endless one is read in order.
    """

    endless: bool

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """The item at `index` in [0, len): always the same item, with a square picture.

        May be called from several threads at once.

        Raises:
          BadItem: the item cannot be read.
          FilteredItem: the filters leave it out.
        """
        ...


def hash01(text: str) -> float:
    """A uniform number in [0, 1) that depends on the text alone; used to make splits."""
    # Names of files need not be UTF-8; Python keeps their other bytes as lone surrogates.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
