"""Pictures and names of the system's Noto Color Emoji font.

The pictures are 136x128 PNG bitmaps in the font's CBDT table. For a sequence of code points (a
flag, a skin tone, a family), the ligatures of the GSUB table give the glyph. The names are those of
Unicode CLDR, from the package `emoji`.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from imagen_jax.data.images import over_white, resize_uint8
from imagen_jax.data.source import Item, hash01
from imagen_jax.errors import UserError

FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",  # Debian, Ubuntu
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",  # Arch
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",  # Fedora
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
    "~/Library/Fonts/NotoColorEmoji.ttf",
)
HELD_OUT_SHARE = 0.05
# Chosen so that the large families (flags, keycaps, people) are in the training split.
_SALT = "emoji17/"

_REMEDY = (
    "install it (Debian and Ubuntu: apt-get install fonts-noto-color-emoji) or set "
    "config.data.path to a NotoColorEmoji.ttf with bitmaps"
)

_JOINER = "\u200d"
_VARIATION = "\ufe0f"
_KEYCAP = "\u20e3"
_BLACK_FLAG = "\U0001f3f4"
_WHITE_FLAG = "\U0001f3f3"
_SKIN_TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
_HAIR = "".join(map(chr, range(0x1F9B0, 0x1F9B4)))
# What distinguishes the variants of a base emoji: presentation, skin tone, sex, direction ("facing
# right"), hair.
_VARIANTS = re.compile(f"{_VARIATION}|[{_SKIN_TONES}]|{_JOINER}[\u2640\u2642\u27a1{_HAIR}]")
# Emoji with a code point for each sex or age; all of one word are mapped to its first character.
_SAME = {
    ord(other): same[0]
    for same in ("🧑👨👩👱🧔", "🧒👦👧", "🧓👴👵", "🤴👸🫅", "🕺💃", "🫄🫃🤰", "👲👳🧕", "🚹🚺")
    for other in same[1:]
}
# Single code points that also exist as a sequence of code points.
_WHOLES = {
    "🤝": "🫱‍🫲",
    "💏": "🧑‍❤‍💋‍🧑",
    "💑": "🧑‍❤‍🧑",
    "👫": "🧑‍🤝‍🧑",
    "👬": "🧑‍🤝‍🧑",
    "👭": "🧑‍🤝‍🧑",
}
_SANTAS = {"🎅", "🤶", "🧑‍🎄"}


class EmojiSource:
    """Every named bitmap of the font, on white.

    Args:
      path: the font file; empty: search the usual places.
      split: a base emoji with all its skin tones, sexes and directions is in one split; so are all
        flags. "held_out" has about 5 % of the base emoji, chosen by hash.
      image_size: side of the pictures.

    Raises:
      UserError: the font is not found, cannot be read or has no colour bitmaps.
    """

    endless = False

    def __init__(self, path: str, split: str, image_size: int):
        self.image_size = image_size
        glyphs = read_font(find_font(path))
        self._items = [
            (clean_name(name, sequence), png)
            for sequence, name, png in glyphs
            if is_held_out(sequence) == (split == "held_out")
        ]
        self._pictures: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._items)

    def parts(self) -> Iterator[tuple[str, int]]:
        """The caption and size of each picture, see `Records`: another font has others."""
        return ((f"{caption} {len(png)}", 1) for caption, png in self._items)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an item, without decoding its picture."""
        return (self._items[index][0],)

    def item(self, index: int) -> Item:
        caption, png = self._items[index]
        # Two threads may decode the same picture at the same time, with the same result.
        if index not in self._pictures:
            square = decode_bitmap(png)
            # Not enlarged here, because all pictures stay in memory.
            smaller = min(self.image_size, square.shape[0])
            self._pictures[index] = resize_uint8(square, smaller, smaller)
        return Item(resize_uint8(self._pictures[index], self.image_size, self.image_size), caption)


def find_font(path: str = "") -> str:
    """The path of the font file. Raises UserError if it is not found."""
    if path:
        if os.path.isfile(os.path.expanduser(path)):
            return os.path.expanduser(path)
        raise UserError(f"config.data.path={path} is not a font file; {_REMEDY}")
    for candidate in map(os.path.expanduser, FONT_PATHS):
        if os.path.isfile(candidate):
            return candidate
    raise UserError(f"the font Noto Color Emoji was not found; {_REMEDY}")


def read_font(path: str) -> list[tuple[str, str, bytes]]:
    """Reads (sequence of code points, CLDR name, PNG) of each named bitmap, sorted by sequence.

    Raises:
      UserError: the file is not a font or has no colour bitmaps.
    """
    from emoji import EMOJI_DATA
    from fontTools.ttLib import TTFont, TTLibError

    try:
        font = TTFont(path, lazy=True)
    except (TTLibError, OSError) as error:
        raise UserError(f"config.data.path={path} is not a readable font ({error})") from error
    with font:
        if "CBDT" not in font or "GSUB" not in font:
            raise UserError(f"{path} has no colour bitmaps (CBDT table); {_REMEDY}")
        bitmaps = font["CBDT"].strikeData[0]
        characters = font.getBestCmap()
        ligatures = _ligatures(font["GSUB"].table)
        named: dict[str, tuple[str, str]] = {}
        for sequence, data in EMOJI_DATA.items():
            plain = sequence.replace(_VARIATION, "")
            glyphs = tuple(characters.get(ord(character), "") for character in plain)
            glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(glyphs, "")
            if glyph not in bitmaps:
                continue
            # Countries share flags with their territories; the country has the shorter name.
            name = data["en"]
            if glyph not in named or len(name) < len(named[glyph][1]):
                named[glyph] = (plain, name)
        found = [(*labels, bitmaps[glyph].imageData) for glyph, labels in named.items()]
    return sorted(found)


def decode_bitmap(png: bytes) -> np.ndarray:
    """A bitmap on white, padded to a square, `[S, S, 3]` uint8."""
    from PIL import Image

    picture = over_white(Image.open(io.BytesIO(png)))
    side = max(picture.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def clean_name(name: str, sequence: str) -> str:
    """A CLDR name in the form ":woman's_hat:" as plain ASCII words."""
    name = name.strip(":").replace("’", "'").replace("&", "and")
    name = name.replace("keycap_#", "keycap hash").replace("keycap_*", "keycap asterisk")
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    name = re.sub(r"[_\-]", " ", name)
    name = " ".join(re.sub(r"[^A-Za-z0-9' ]", "", name).split())
    is_country = _is_regional(sequence[0]) or (sequence[0] == _BLACK_FLAG and len(sequence) > 4)
    return f"flag of {name}" if is_country else name


def family(sequence: str) -> str:
    """A key that all variants of one base emoji share."""
    if _is_regional(sequence[0]) or sequence[0] in (_BLACK_FLAG, _WHITE_FLAG):
        return "flag"
    if sequence[-1] == _KEYCAP:
        return "keycap"
    base = _VARIANTS.sub("", sequence)
    base = _WHOLES.get(base, base).translate(_SAME)
    if base in _SANTAS:
        return "🎅"
    people = base.split(_JOINER)
    if base == "👪" or (len(people) > 1 and set(people) <= {"🧑", "🧒"}):
        return "👪"
    return base


def is_held_out(sequence: str) -> bool:
    """Whether an emoji is in the held-out split."""
    return hash01(_SALT + family(sequence)) < HELD_OUT_SHARE


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _ligatures(table: object) -> dict[tuple[str, ...], str]:
    """From a sequence of glyphs to the glyph that draws it, over all lookups of the table."""
    found: dict[tuple[str, ...], str] = {}
    for subtable in itertools.chain.from_iterable(
        lookup.SubTable for lookup in table.LookupList.Lookup
    ):
        subtable = getattr(subtable, "ExtSubTable", subtable)
        for first, ligatures in getattr(subtable, "ligatures", {}).items():
            for ligature in ligatures:
                found.setdefault((first, *ligature.Component), ligature.LigGlyph)
    return found
