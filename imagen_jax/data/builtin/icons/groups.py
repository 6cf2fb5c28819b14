"""Which icons are held out, and in what sense they are new to a model.

Everything is drawn by hash, so that it does not depend on the order or the number of icons.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from imagen_jax.data.source import hash01

SEEN = "seen"
# Training draws the concept in at least two other styles, and the style on other concepts.
UNSEEN_PAIR = "unseen pair"
# Training never draws the concept.
UNSEEN_CONCEPT = "unseen concept"
GROUPS = (SEEN, UNSEEN_PAIR, UNSEEN_CONCEPT)

UNSEEN_CONCEPT_SHARE = 0.02
UNSEEN_PAIR_SHARE = 0.05
# Other styles in which training draws the concept of an unseen pair.
_LEAST_OTHER_STYLES = 2
_SALT = "icons/"


def find_groups(shown: Sequence[tuple[str, str, str]]) -> list[str]:
    """The group of each icon: seen icons are trained on, the others are held out.

    The variants of one family (skin tones, genders) are never on both sides: 2 % of the families
    are unseen concepts, and of the pairs of a family and a style, 5 % are candidates for unseen
    pairs. A candidate is held out if every concept of the pair has two other styles that are no
    candidates. So another set that is added later moves nothing from the held-out side to the side
    of training.

    Args:
      shown: concept, family and style of each icon.
    """
    # Styles in which training is sure to draw a concept.
    sure: dict[str, set[str]] = collections.defaultdict(set)
    members: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for concept, family, style in shown:
        members[family, style].add(concept)
        if not _is_candidate(family, style):
            sure[concept].add(style)

    def group(family: str, style: str) -> str:
        if hash01(f"{_SALT}{family}") < UNSEEN_CONCEPT_SHARE:
            return UNSEEN_CONCEPT
        held_out = _is_candidate(family, style) and all(
            len(sure[concept]) >= _LEAST_OTHER_STYLES for concept in members[family, style]
        )
        return UNSEEN_PAIR if held_out else SEEN

    groups = {pair: group(*pair) for pair in members}
    return [groups[family, style] for _, family, style in shown]


def _is_candidate(family: str, style: str) -> bool:
    return hash01(f"{_SALT}{family}/{style}") < UNSEEN_PAIR_SHARE
