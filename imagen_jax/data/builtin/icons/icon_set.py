"""What is known of a set of icons once it has been read."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A vector drawing: the part of an SVG file inside its root element, and how it is placed.

    Attributes:
      body: SVG elements.
      left, top, width, height: of the view box, in the units of the body.
      quarter_turns: clockwise, in [0, 4); after the flips.
      flip_horizontal, flip_vertical: mirror it left to right, top to bottom.
    """

    body: str
    left: float
    top: float
    width: float
    height: float
    quarter_turns: int = 0
    flip_horizontal: bool = False
    flip_vertical: bool = False


@dataclasses.dataclass(frozen=True)
class Icon:
    """One picture of a set.

    Attributes:
      name: names it within its set.
      picture: a vector drawing, or the path of a picture file.
      other_names: of the same picture.
      sequence: the emoji that it shows, as code points without variation selectors; "" if the set
        does not say.
      category: that the set gives it, "" for none.
    """

    name: str
    picture: Drawing | Path
    other_names: tuple[str, ...] = ()
    sequence: str = ""
    category: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a set comes from and what may be done with it; "" for what the set does not say.

    Attributes:
      title, author, url: of the set.
      license: its SPDX identifier, or its title if it has none.
      license_url: the text of the licence.
      package: name and version of the npm package.
    """

    title: str = ""
    author: str = ""
    url: str = ""
    license: str = ""
    license_url: str = ""
    package: str = ""


@dataclasses.dataclass(frozen=True)
class IconSet:
    """A set of icons.

    Attributes:
      name: its identifier, such as "fluent-emoji-flat".
      icons: in a fixed order; names do not repeat.
      is_emoji: all icons are emoji, so short names mean what they mean in chat programs.
      origin: see there.
      files: that it was read from.
      skipped: what was left out (reason: number).
    """

    name: str
    icons: tuple[Icon, ...]
    is_emoji: bool
    origin: Origin
    files: tuple[Path, ...]
    skipped: collections.Counter[str]
