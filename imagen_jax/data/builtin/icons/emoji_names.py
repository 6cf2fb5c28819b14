"""Emoji by their names, of which each has several, and names by emoji.

An emoji is a text of code points without variation selectors, a "sequence".
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Mapping

from imagen_jax.data.builtin.emoji import clean_name
from imagen_jax.data.builtin.icons.naming import squeeze, words

_VARIATION = "\ufe0f"
_CODE_POINTS = re.compile(r"[0-9a-f]{2,6}([-_][0-9a-f]{2,6})*", re.IGNORECASE)
# The flag of a region: a black flag and letters as tags. Some file names leave out the end mark.
_REGION = re.compile("\U0001f3f4[\U000e0061-\U000e007a]+")
_END_OF_REGION = "\U000e007f"
_LAST_CODE_POINT = 0x10FFFF
# Halves of pairs in UTF-16, which are no characters.
_SURROGATES = range(0xD800, 0xE000)


@dataclasses.dataclass(frozen=True)
class EmojiTable:
    """The emoji of Unicode.

    Attributes:
      names: sequence to its CLDR name, as `words`.
      sequences: CLDR name, or name of a character in the Unicode standard, squeezed, to sequence.
      short_names: the same for the short names of chat programs (":heart:") and for countries,
        which other icons may well share with them.
      vocabulary: every word of these names.
    """

    names: Mapping[str, str]
    sequences: Mapping[str, str]
    short_names: Mapping[str, str]
    vocabulary: frozenset[str]


@functools.cache
def emoji_table() -> EmojiTable:
    """The table, of the versions of Unicode and CLDR that the `emoji` package has."""
    from emoji import EMOJI_DATA

    names: dict[str, str] = {}
    sequences: dict[str, str] = {}
    characters: dict[str, str] = {}
    short_names: dict[str, str] = {}
    vocabulary: set[str] = set()
    for text, data in sorted(EMOJI_DATA.items()):
        sequence = text.replace(_VARIATION, "")
        short = data.get("alias", ())
        names[sequence] = words(clean_name(data["en"], sequence))
        for name in _spellings(names[sequence]):
            sequences.setdefault(squeeze(name), sequence)
        # CLDR names the flag of a country by the country alone.
        for name in (data["en"], *short):
            short_names.setdefault(squeeze(name), sequence)
        character = unicodedata.name(sequence, "") if len(sequence) == 1 else ""
        if character:
            characters.setdefault(squeeze(character), sequence)
        for name in (names[sequence], character, *short):
            vocabulary.update(words(name).split())
    return EmojiTable(names, characters | sequences, short_names, frozenset(vocabulary))


def _spellings(name: str) -> tuple[str, ...]:
    """A name, and how sets write it if it is that of a country's flag."""
    country = name.removeprefix("flag of ")
    if country == name:
        return (name,)
    return name, f"flag for {country}", f"flag {country}", f"{country} flag"


def is_emoji(sequence: str) -> bool:
    """Whether the sequence is an emoji of the table."""
    return sequence in emoji_table().names


def parse_code_points(text: str) -> str:
    """The sequence written as hexadecimal code points with "-" or "_", "" if it is none.

    "0023-fe0f-20e3" is the keycap of "#".
    """
    if not _CODE_POINTS.fullmatch(text):
        return ""
    points = [int(code, 16) for code in re.split("[-_]", text)]
    if any(point > _LAST_CODE_POINT or point in _SURROGATES for point in points):
        return ""
    sequence = "".join(map(chr, points)).replace(_VARIATION, "")
    return sequence + _END_OF_REGION if _REGION.fullmatch(sequence) else sequence
