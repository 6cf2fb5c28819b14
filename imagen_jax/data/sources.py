"""The one interface of everything that pictures and captions come from."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.errors import UserError

SOURCES = ("shapes", "emoji", "folder")
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture `[S, S, 3]` uint8 and its caption."""

    image: np.ndarray
    caption: str


class BadItem(Exception):
    """An item cannot be read (a truncated file, say). Another takes its place in training."""


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

        Called from several threads at once. Raises BadItem if it cannot be read.
        """
        ...


def load_source(config: DataConfig, split: str, image_size: int, caption_seed: int = 0) -> Source:
    """The source that the configuration names.

    Args:
      config: names the source and its path.
      split: "train" or "held_out".
      image_size: side of the square pictures it gives.
      caption_seed: which sequence of scenes and captions "shapes" draws.

    Raises:
      UserError: the source or split is unknown, or its files are not there.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if image_size < 1:
        raise UserError(f"image size is {image_size}; it must be positive")
    if config.source == "shapes":
        from imagen_jax.data.shapes.source import ShapesSource

        return ShapesSource(split, image_size, caption_seed)
    if config.source == "emoji":
        from imagen_jax.data.emoji import EmojiSource

        return EmojiSource(config.path, split, image_size)
    if config.source == "folder":
        from imagen_jax.data.folder import FolderSource

        return FolderSource(config.path, split, image_size)
    raise UserError(f"config.data.source is {config.source!r}; use one of {', '.join(SOURCES)}")


def captions_of(source: Source, index: int) -> tuple[str, ...]:
    """The captions that training may draw for an item.

    A source that knows them without decoding the picture has a method `captions(index)`.

    Raises:
      BadItem: it has to be decoded, and cannot be.
    """
    captions = getattr(source, "captions", None)
    return captions(index) if captions else (source.item(index).caption,)


def hash01(text: str) -> float:
    """A uniform number in [0, 1) that depends on the text alone; splits are made with it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
