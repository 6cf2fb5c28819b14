"""How many pictures obey their captions, by group of prompts and by part of the caption."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from imagen_jax.evaluation.prompt_set import Prompt
from imagen_jax.evaluation.proportions import share

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Score:
    """What a scorer found in one picture.

    Attributes:
      parts: whether each part that the caption claims holds.
      seen: what the picture shows, in words.
    """

    parts: dict[str, bool]
    seen: str

    @property
    def accepted(self) -> bool:
        """Whether all parts hold."""
        return all(self.parts.values())

    @property
    def failed(self) -> list[str]:
        """The parts that do not hold."""
        return [part for part, holds in self.parts.items() if not holds]


def accuracy_by_group(
    scores: Sequence[Score], prompts: Sequence[Prompt], parts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Shares for each group of prompts and for "all", as plain JSON values.

    Args:
      scores: one for each prompt.
      prompts: with their groups.
      parts: the order of the parts in the result.

    Returns:
      For each group `accepted` and `parts`, with the fields of `proportions.Share`. The share of
      a part is taken over the pictures whose caption claims it.
    """
    groups: dict[str, list[Score]] = {}
    for score, prompt in zip(scores, prompts, strict=True):
        groups.setdefault(prompt.group, []).append(score)
    groups[ALL] = list(scores)
    return {name: _shares(members, parts) for name, members in groups.items()}


def _shares(scores: Sequence[Score], parts: Sequence[str]) -> dict[str, Any]:
    claimed = {
        part: [score.parts[part] for score in scores if part in score.parts] for part in parts
    }
    return {
        "accepted": dataclasses.asdict(share([score.accepted for score in scores])),
        "parts": {part: dataclasses.asdict(share(hits)) for part, hits in claimed.items() if hits},
    }
