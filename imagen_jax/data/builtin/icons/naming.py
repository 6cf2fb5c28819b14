"""Names of icons, sets and categories as plain words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable

# A style is named by its set without these.
_OF_EVERY_SET = {"emoji", "emojis", "icon", "icons"}
# Names are written together in a set in which fewer names than this have a separator.
_SEPARATED_SHARE = 0.05
# Shorter words are found in longer ones by accident ("art" is one, "als" is none).
_SHORTEST_PART = 3
_SHORT_PARTS = frozenset({"of", "in", "on", "at", "to", "no", "ok", "up", "x"})


def words(text: str) -> str:
    """A text as lower-case ASCII words: "Food & Drink" as "food and drink", "piñata" as "pinata".

    Letters, digits and apostrophes stay, everything else separates words.
    """
    text = text.lower().replace("’", "'").replace("&", " and ")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^a-z0-9']", " ", text).split())


def squeeze(text: str) -> str:
    """The letters and digits of `words(text)`: the same for "red-apple" and "Redapple"."""
    return re.sub(r"[^a-z0-9]", "", words(text))


def style_name(set_name: str) -> str:
    """The name of a set as a style: "fluent-emoji-flat" as "fluent flat", "mdi" as it is."""
    parts = words(set_name).split()
    return " ".join(part for part in parts if part not in _OF_EVERY_SET) or " ".join(parts)


def are_run_together(names: Collection[str]) -> bool:
    """Whether a set writes its names without separators ("firstquartermoon")."""
    separated = sum(" " in words(name) for name in names)
    return separated < _SEPARATED_SHARE * len(names)


def split_run_together(name: str, vocabulary: Collection[str]) -> str:
    """A name as the fewest words of a vocabulary that it consists of: "foxgrin" as "fox grin".

    Args:
      name: letters and digits; digits are words of their own.
      vocabulary: lower-case words.

    Returns:
      The words with spaces, or the name as it is if it is one word or no sequence of words.
    """
    pieces = re.findall(r"[a-z']+|\d+", name)
    parts = [[piece] if piece.isdigit() else _fewest_words(piece, vocabulary) for piece in pieces]
    return " ".join(part for found in parts for part in found) if all(parts) else name


def _fewest_words(letters: str, vocabulary: Collection[str]) -> list[str]:
    """The words; [] if the letters are no sequence of them. Of several, the first is longest."""
    # best[i]: the words of letters[i:].
    best: dict[int, list[str]] = {len(letters): []}
    for start in reversed(range(len(letters))):
        choices: Iterable[list[str]] = (
            [letters[start:end], *best[end]]
            for end in range(len(letters), start, -1)
            if end in best and _is_part(letters[start:end], vocabulary)
        )
        shortest = min(choices, key=len, default=None)
        if shortest is not None:
            best[start] = shortest
    return best.get(0, [])


def _is_part(part: str, vocabulary: Collection[str]) -> bool:
    return part in _SHORT_PARTS or (len(part) >= _SHORTEST_PART and part in vocabulary)
