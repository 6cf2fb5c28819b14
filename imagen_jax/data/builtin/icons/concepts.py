"""What icons show, as concepts that the sets have in common.

The rules, in this order:

1. An icon whose set gives its code points shows that emoji.
2. A name is compared without case and separators ("red-apple", "redapple"). It is an emoji's if it
   is its CLDR name, the Unicode name of its character, a name that another set gives to its code
   points, or, in a set of emoji, a short name of chat programs. The other names of the icon in its
   set count as well.
3. A number after the name of an emoji ("strawberry-2") counts the drawings of it: it is left away.
4. All other icons show what their name says. Names of a set that writes them together are split
   into known words.

The name of a concept is the CLDR name of the emoji, else the name that a set gives to its code
points, else that of the icon, as `naming.words`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from imagen_jax.data.builtin.emoji import family
from imagen_jax.data.builtin.icons.emoji_names import emoji_table, parse_code_points
from imagen_jax.data.builtin.icons.icon_set import Icon, IconSet
from imagen_jax.data.builtin.icons.naming import (
    are_run_together,
    split_run_together,
    squeeze,
    words,
)

_TONE = "(?:medium light|medium dark|medium|light|dark)"
_TONES_AT_END = re.compile(rf"( {_TONE} skin tone)+$")
_SHORT_TONE_AT_END = re.compile(rf" {_TONE}$")
_NUMBER_AT_END = re.compile(r"(.*[a-z])[ -]?\d+")
_FIRST_TONE, _LAST_TONE = "\U0001f3fb", "\U0001f3ff"


@dataclasses.dataclass(frozen=True)
class Concept:
    """What an icon shows.

    Attributes:
      name: the concept is the same where the name is. Lower-case ASCII words, unless the name of
        the icon has no ASCII letter or digit.
      family: what the skin tones and genders of one emoji have in common; else as the name.
      has_skin_tone: it is a variant with a skin tone of its own.
    """

    name: str
    family: str
    has_skin_tone: bool


def find_concepts(sets: Sequence[IconSet]) -> list[list[Concept | None]]:
    """The concept of each icon of each set, in their order.

    None for an icon that is named by code points which nothing gives a name to.
    """
    names: dict[str, str] = {}
    sequences: dict[str, str] = {}
    for icon_set in sets:
        for icon in icon_set.icons:
            if icon.sequence and parse_code_points(icon.name) != icon.sequence:
                names.setdefault(icon.sequence, words(icon.name))
                for name in (icon.name, *icon.other_names):
                    sequences.setdefault(squeeze(name), icon.sequence)
    names |= emoji_table().names
    return [
        [_concept(icon, context) for icon in icon_set.icons]
        for icon_set in sets
        for context in [_Context.of(icon_set, names, sequences)]
    ]


@dataclasses.dataclass(frozen=True)
class _Context:
    """What the names of a set are compared with.

    Attributes:
      emoji_names: emoji to the name of its concept.
      sequences: squeezed name to emoji, in order of precedence.
      set_names: names of the set, as words.
      run_together: they are written without separators.
    """

    emoji_names: Mapping[str, str]
    sequences: tuple[Mapping[str, str], ...]
    set_names: Collection[str]
    run_together: bool

    @classmethod
    def of(
        cls, icon_set: IconSet, emoji_names: Mapping[str, str], from_sets: Mapping[str, str]
    ) -> _Context:
        table = emoji_table()
        sequences = (table.sequences, from_sets)
        set_names = frozenset(words(icon.name) for icon in icon_set.icons)
        return cls(
            emoji_names=emoji_names,
            sequences=(*sequences, table.short_names) if icon_set.is_emoji else sequences,
            set_names=set_names,
            run_together=are_run_together(set_names),
        )

    def emoji_of(self, name: str) -> str:
        """The emoji of a name, "" for none."""
        squeezed = squeeze(name)
        found = (sequences[squeezed] for sequences in self.sequences if squeezed in sequences)
        return next(found, "")

    def concept_of(self, sequence: str) -> Concept | None:
        """The concept of an emoji, None if nothing gives it a name."""
        # All flags, and all keycaps, are one family in the sense of `emoji.family`: too many.
        base = family(sequence)
        name = self.emoji_names.get(sequence)
        return name and Concept(
            name=name,
            family=sequence if base in ("flag", "keycap", "") else base,
            # A lone modifier is a patch of colour.
            has_skin_tone=len(sequence) > 1 and any(_is_tone(point) for point in sequence),
        )


def _concept(icon: Icon, context: _Context) -> Concept | None:
    if icon.sequence:
        return context.concept_of(icon.sequence)
    names = [_with_whole_tone(words(name), context) for name in (icon.name, *icon.other_names)]
    for name in names:
        if sequence := context.emoji_of(name):
            return context.concept_of(sequence)
    for name in names:
        base, tones = _cut_tones(name)
        if sequence := tones and context.emoji_of(base):
            concept = context.concept_of(sequence)
            return Concept(concept.name + tones, concept.family, True)
        numbered = _NUMBER_AT_END.fullmatch(name)
        if sequence := numbered and context.emoji_of(numbered[1]):
            return context.concept_of(sequence)
    base, tones = _cut_tones(names[0])
    if context.run_together:
        base = split_run_together(base, emoji_table().vocabulary)
    # The words of a name without ASCII letters are empty.
    base = base or icon.name
    return Concept(base + tones, base, bool(tones))


def _with_whole_tone(name: str, context: _Context) -> str:
    """ "man dark" as "man dark skin tone", in a set that has all tones of it so."""
    short = _SHORT_TONE_AT_END.search(name)
    if short and f"{name[: short.start()]} medium light" in context.set_names:
        return f"{name} skin tone"
    return name


def _cut_tones(name: str) -> tuple[str, str]:
    """A name without its skin tones, and these (with the space before them)."""
    tones = _TONES_AT_END.search(name)
    return (name[: tones.start()], tones[0]) if tones else (name, "")


def _is_tone(point: str) -> bool:
    return _FIRST_TONE <= point <= _LAST_TONE
