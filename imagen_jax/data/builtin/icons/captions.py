"""Captions of an icon, made from its concept, its style and its category."""

from __future__ import annotations

import re

from imagen_jax.data.builtin.icons.naming import words
from imagen_jax.data.source import hash01

# One icon in so many has a caption with its category.
_CATEGORY_EVERY = 4

# Spoken with another sound than their first letter has.
_CONSONANT_SOUND = re.compile(
    r"(eu|ewe|one\b|once\b|ouija|u\b|ufo\b|uk\b|us\b|usb\b|uni[^nm]|use|uti)"
)
_VOWEL_SOUND = re.compile(r"(hour|heir|honest|honou?r|8|11\b|18\b)")
# Spelled out: letters and abbreviations that begin with the sound of a vowel.
_SPELLED = re.compile(r"([aefhilmnorsx]|atm|fm|mri|ng|rv|sos|x ray)\b")

# The noun of a name stands before the first of these.
_AFTER_NOUN = re.compile(r" (with|without|of|in|on|at|for|from|over|behind|and|\w+ing)\b.*")
_NO_PLURAL = ("ss", "us", "is", "eros")
_PLURALS = frozenset({"people", "men", "women", "children", "teeth", "feet", "fries"})
_UNCOUNTABLE = frozenset(
    {
        "bacon", "bread", "broccoli", "butter", "cheese", "clothing", "fog", "food", "garlic",
        "ginger", "hair", "honey", "ice", "information", "luggage", "meat", "milk", "money",
        "music", "rice", "sake", "salt", "spaghetti", "sushi", "tofu", "water", "weather",
    }
)  # fmt: skip


def icon_captions(concept: str, style: str, category: str) -> tuple[str, ...]:
    """The captions of an icon; the same for the same arguments.

    Most name the style. One icon in four also has a caption with its category.

    Args:
      concept: words, see `concepts.Concept`.
      style: words.
      category: of the set, in any spelling; "" for none.
    """
    noun = with_article(concept)
    captions = [
        f"{noun}, {style} style",
        f"{concept}, {style} style",
        f"{noun} in the {style} style",
        f"{concept} in the {style} style",
        concept,
    ]
    named = words(category)
    if named and hash01(f"icons/category/{concept}/{style}") < 1 / _CATEGORY_EVERY:
        captions.append(f"{concept}, {named}")
    # Both forms are one where the concept takes no article.
    return tuple(dict.fromkeys(captions))


def with_article(name: str) -> str:
    """ "strawberry" as "a strawberry", "orange" as "an orange", "grapes" as it is."""
    noun = _AFTER_NOUN.sub("", name).split()[-1]
    is_plural = noun.endswith("s") and not noun.endswith(_NO_PLURAL)
    if is_plural or noun in _PLURALS or noun in _UNCOUNTABLE:
        return name
    vowel = _SPELLED.match(name) or _VOWEL_SOUND.match(name)
    if vowel or (name[0] in "aeiou" and not _CONSONANT_SOUND.match(name)):
        return f"an {name}"
    return f"a {name}"
