"""How many pictures obey their captions, by group of prompts and by part of the caption."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from imagen_jax.evaluation.caption_check import check
from imagen_jax.evaluation.prompt_set import Prompt
from imagen_jax.evaluation.proportions import share
from imagen_jax.evaluation.scene_reader import SeenScene, read_scene

# The parts that a caption can claim, in the order of tables.
PARTS = ("count", "colour", "shape", "size", "relation", "background")
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Score:
    """What the scorer says of one picture.

    Attributes:
      parts: whether each part that the caption claims holds.
      accepted: whether all do.
      seen: the scene that was read from the pixels, in words.
    """

    parts: dict[str, bool]
    accepted: bool
    seen: str

    @property
    def failed(self) -> list[str]:
        """The parts that do not hold."""
        return [part for part, holds in self.parts.items() if not holds]


def score(picture: np.ndarray, prompt: Prompt) -> Score:
    """Scores a `[S, S, 3]` uint8 picture, S at least `scene_reader.SMALLEST`.

    Args:
      prompt: with its caption's claims.
    """
    seen = read_scene(picture)
    verdict = check(seen, prompt.caption)
    return Score(verdict.parts, verdict.accepted, describe(seen))


def score_all(pictures: Iterable[np.ndarray], prompts: Sequence[Prompt]) -> list[Score]:
    """One score for each picture and its prompt."""
    return [score(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]


def describe(seen: SeenScene) -> str:
    """A scene in words, for people: "on white: large red circle at (0.30, 0.52)"."""
    objects = [f"{o.size} {o.colour} {o.shape} at ({o.x:.2f}, {o.y:.2f})" for o in seen.objects]
    return f"on {seen.background}: {'; '.join(objects) or 'nothing'}"


def by_group(scores: Sequence[Score], prompts: Sequence[Prompt]) -> dict[str, dict]:
    """Shares for each group and for "all", JSON-like.

    Each has `accepted` and `parts`, as `proportions.Share`; a part's share is of the pictures whose
    caption claims it.
    """
    groups: dict[str, list[Score]] = {}
    for one, prompt in zip(scores, prompts, strict=True):
        groups.setdefault(prompt.group, []).append(one)
    groups[ALL] = list(scores)
    return {name: _shares(members) for name, members in groups.items()}


def _shares(scores: Sequence[Score]) -> dict:
    parts = {
        part: [one.parts[part] for one in scores if part in one.parts]
        for part in PARTS
        if any(part in one.parts for one in scores)
    }
    return {
        "accepted": dataclasses.asdict(share([one.accepted for one in scores])),
        "parts": {part: dataclasses.asdict(share(hits)) for part, hits in parts.items()},
    }
