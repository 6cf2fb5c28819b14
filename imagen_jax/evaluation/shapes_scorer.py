"""The scorer of `shapes`: reads the scene from the pixels and checks the claims of the caption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from imagen_jax.evaluation.caption_accuracy import Score
from imagen_jax.evaluation.caption_check import check
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet
from imagen_jax.evaluation.scene_reader import MIN_RESOLUTION, SeenScene, read_scene
from imagen_jax.evaluation.shapes_prompts import SHAPES_GROUPS, shapes_prompts

PARTS = ("count", "colour", "shape", "size", "relation", "background")


class ShapesScorer:
    """A `Scorer`."""

    groups = tuple(SHAPES_GROUPS)
    parts = PARTS
    min_resolution = MIN_RESOLUTION
    notes = ()

    def prompts(self, number: int) -> PromptSet:
        """Prompts of scenes that training never draws; see `Scorer.prompts`."""
        return shapes_prompts(number)

    def score(self, pictures: Iterable[np.ndarray], prompts: Sequence[Prompt]) -> list[Score]:
        """Reads and checks each picture; see `Scorer.score`."""
        scores = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            seen = read_scene(picture)
            scores.append(Score(check(seen, prompt.claims), describe(seen)))
        return scores


def describe(seen: SeenScene) -> str:
    """A scene in words, for people: "on white: large red circle at (0.30, 0.52)"."""
    objects = [f"{o.size} {o.colour} {o.shape} at ({o.x:.2f}, {o.y:.2f})" for o in seen.objects]
    return f"on {seen.background}: {'; '.join(objects) or 'nothing'}"
