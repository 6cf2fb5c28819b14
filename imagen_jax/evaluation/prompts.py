"""The prompts of an evaluation, with their seeds and their true pictures.

Prompt and seed are pure functions of the group and the number within it, so that two checkpoints
are asked for the same pictures, and the first prompts of a long evaluation are those of a short
one. Groups take turns, so each has an equal share of any number.

`shapes` has five groups (`SHAPES_GROUPS`); pictures from files have two: "held in", captions that
training shows, and "held out".
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.builtin.shapes import Caption, Scene, caption, render, scene
from imagen_jax.data.builtin.shapes.scenes import held_out_reasons
from imagen_jax.data.open import load_source
from imagen_jax.data.pipeline import batches
from imagen_jax.data.source import Source, hash01
from imagen_jax.errors import UserError

# Training draws the sequence of seed 0 and refuses negative seeds.
SCENE_SEED = -1
# Of the order in which captions of files are taken.
ORDER_SEED = 2022

# Pictures are this small where only their captions are wanted.
_LOOK_AT = 8

# Name: split, kind of scene, and the reason for which training never shows it.
SHAPES_GROUPS = {
    "one object": ("train", "single", None),
    "unseen pair": ("held_out", "single", "pair"),
    "two objects": ("train", "relation", None),
    "unseen relation": ("held_out", "relation", "triple"),
    "count": ("train", "count", None),
}
FILE_GROUPS = {"held in": "train", "held out": "held_out"}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One picture to draw.

    Attributes:
      group: kind of prompt.
      number: place in the group.
      text: what the cascade is asked for.
      seed: of the picture, in [0, 2^32).
      caption: what the text claims, where that is known (`shapes`).
      repeat: 0, or which further picture of the same text this is.
    """

    group: str
    number: int
    text: str
    seed: int
    caption: Caption | None = None
    repeat: int = 0

    @property
    def name(self) -> str:
        """For file names; no two prompts of an evaluation share one."""
        name = f"{self.group.replace(' ', '_')}_{self.number:05d}"
        return f"{name}_{self.repeat}" if self.repeat else name

    def again(self, repeat: int) -> Prompt:
        """The same text with another seed."""
        return dataclasses.replace(self, seed=_seed(self.group, self.number, repeat), repeat=repeat)


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts, the groups taking turns, and the pictures that their texts were made for.

    Attributes:
      prompts: the first N.
      true_pictures: from a size S to the true pictures `[S, S, 3]` uint8, in order.
      notes: what a reader of the report must know of the groups.
    """

    prompts: tuple[Prompt, ...]
    true_pictures: Callable[[int], Iterator[np.ndarray]]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, in order."""
        return tuple(dict.fromkeys(prompt.group for prompt in self.prompts))


def load_prompts(data: DataConfig, number: int) -> PromptSet:
    """The first `number` prompts for a cascade that was trained on `data`.

    Raises:
      UserError: fewer prompts than groups, or the data is not there.
    """
    groups = SHAPES_GROUPS if data.source == "shapes" else FILE_GROUPS
    if number < len(groups):
        raise UserError(
            f"--num_prompts={number} is too few: give at least {len(groups)}, one for each of "
            f"{', '.join(groups)}"
        )
    return _shapes_prompts(number) if data.source == "shapes" else _file_prompts(data, number)


def _seed(group: str, number: int, repeat: int = 0) -> int:
    return int(hash01(f"evaluate/{group}/{number}/{repeat}") * 2**32)


def _shapes_prompts(number: int) -> PromptSet:
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
        yield Prompt(group, number, claims.text, _seed(group, number), claims), drawn
        number += 1


def _file_prompts(data: DataConfig, number: int) -> PromptSet:
    @functools.cache
    def source(group: str, size: int) -> Source:
        return load_source(data, FILE_GROUPS[group], size)

    sizes = {group: len(source(group, _LOOK_AT)) for group in FILE_GROUPS}
    groups = [group for group in FILE_GROUPS if sizes[group]]
    notes = ()
    if not sizes["held out"]:
        notes = ("The data holds no picture out of training, so all prompts are held in.",)
    elif len(set(sizes.values())) == 1:
        notes = (
            "The data is too small to hold pictures out of training: both groups of prompts are "
            "the captions that training shows.",
        )

    def items(size: int) -> Iterator[dict]:
        # As training reads them: what cannot be read is replaced by the next that can.
        readers = [
            batches(
                source(group, size),
                batch_size=1,
                image_size=size,
                seed=ORDER_SEED,
                num_threads=0,
            )
            for group in groups
        ]
        for reader in itertools.islice(itertools.cycle(readers), number):
            yield next(reader)

    prompts = []
    for place, item in enumerate(items(_LOOK_AT)):
        turn, group = divmod(place, len(groups))
        group = groups[group]
        prompts.append(Prompt(group, turn, item["captions"][0], _seed(group, turn)))
    return PromptSet(
        prompts=tuple(prompts),
        true_pictures=lambda size: (item["image"][0] for item in items(size)),
        notes=notes,
    )
