"""The one interface of everything that pictures and captions come from."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np

from imagen_jax.config import SOURCES, DataConfig, SourceConfig
from imagen_jax.errors import UserError

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


def load_source(config: DataConfig, split: str, image_size: int, caption_seed: int = 0) -> Source:
    """The source that the configuration names.

    Args:
      config: names the source and its path, and says which pictures are wanted.
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
        from imagen_jax.data.builtin.shapes.source import ShapesSource

        return ShapesSource(split, image_size, caption_seed)
    if config.source == "mix":
        from imagen_jax.data.mixing import MixedSource

        parts = {n: _load_part(part, config, split, image_size) for n, part in config.mix.items()}
        # A small part may have nothing to hold out.
        parts = {name: part for name, part in parts.items() if len(part)}
        weights = tuple(config.mix[name].weight for name in parts)
        return MixedSource(tuple(parts.values()), weights)
    return _load_part(config, config, split, image_size)


def _load_part(part: SourceConfig, config: DataConfig, split: str, image_size: int) -> Source:
    if part.source == "emoji":
        from imagen_jax.data.builtin.emoji import EmojiSource

        return EmojiSource(part.path, split, image_size)
    from imagen_jax.data.records import DecodedRecords, Wanted, load_records

    wanted = Wanted.of(config, has_score=bool(part.score_field))
    if part.source == "icons":
        from imagen_jax.data.builtin.icons.records import IconRecords

        return DecodedRecords(IconRecords(part.path, split, image_size), image_size, wanted)
    return DecodedRecords(load_records(part, split), image_size, wanted)


def unknown_source(name: str) -> UserError:
    """The error for a source that does not exist."""
    return UserError(f"config.data.source is {name!r}; use one of {', '.join(SOURCES)}")


def captions_of(source: Source, index: int) -> tuple[str, ...]:
    """The captions that training may draw for an item.

    A source that knows them without decoding the picture has a method `captions(index)`.

    Raises:
      BadItem: it has to be decoded, and cannot be.
    """
    captions = getattr(source, "captions", None)
    if captions:
        return captions(index)
    item = source.item(index)
    return (item.caption, *item.other_captions)


def hash01(text: str) -> float:
    """A uniform number in [0, 1) that depends on the text alone; splits are made with it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
