"""The prompts of `shapes`: scenes that training never draws, with the claims of their captions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from imagen_jax.data.builtin.shapes import Scene, caption, render, scene
from imagen_jax.data.builtin.shapes.scenes import held_out_reasons
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet, prompt_seed

# Never drawn in training, which has seed 0 and refuses negative seeds.
SCENE_SEED = -1

# Group: split, kind of scene, and why the scene is held out (None: it is not).
SHAPES_GROUPS = {
    "one object": ("train", "single", None),
    "unseen pair": ("held_out", "single", "pair"),
    "two objects": ("train", "relation", None),
    "unseen relation": ("held_out", "relation", "triple"),
    "count": ("train", "count", None),
}


def shapes_prompts(number: int) -> PromptSet:
    """The first `number` prompts, the groups taking turns."""
    turns = itertools.cycle(_scenes_of_group(group) for group in SHAPES_GROUPS)
    drawn = [next(group) for group in itertools.islice(turns, number)]
    return PromptSet(
        prompts=tuple(prompt for prompt, _ in drawn),
        true_pictures=lambda size: (render(one, size) for _, one in drawn),
    )


def _scenes_of_group(group: str) -> Iterator[tuple[Prompt, Scene]]:
    split, kind, reason = SHAPES_GROUPS[group]
    number = 0
    for index in itertools.count():
        drawn = scene(SCENE_SEED, index, split, kind)
        if held_out_reasons(drawn) != frozenset([reason] if reason else []):
            continue
        claims = caption(drawn, SCENE_SEED, index)
        yield Prompt(group, number, claims.text, prompt_seed(group, number), claims), drawn
        number += 1
