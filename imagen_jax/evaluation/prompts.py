"""The prompts of an evaluation, with their seeds and their true pictures.

Prompt and seed are pure functions of the group and the number within it, so that two checkpoints
are asked for the same pictures, and the first prompts of a long evaluation are those of a short
one. Groups take turns, so each has an equal share of any number.

`shapes` has five groups (`SHAPES_GROUPS`); pictures from files have two: "held in", captions that
training shows, and "held out".
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from imagen_jax.config import DataConfig
from imagen_jax.data.pipeline import batches
from imagen_jax.data.source import Source, load_source
from imagen_jax.errors import UserError
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet, prompt_seed
from imagen_jax.evaluation.scorer import scorer_of

# Of the order in which captions of files are taken.
ORDER_SEED = 2022

# Pictures are this small where only their captions are wanted.
_LOOK_AT = 8

FILE_GROUPS = {"held in": "train", "held out": "held_out"}


def load_prompts(data: DataConfig, number: int) -> PromptSet:
    """The first `number` prompts for a cascade that was trained on `data`.

    Raises:
      UserError: fewer prompts than groups, or the data is not there.
    """
    scorer = scorer_of(data)
    groups = tuple(FILE_GROUPS) if scorer is None else scorer.groups
    if number < len(groups):
        raise UserError(
            f"--num_prompts={number} is too few: give at least {len(groups)}, one for each of "
            f"{', '.join(groups)}"
        )
    return _file_prompts(data, number) if scorer is None else scorer.prompts(number)


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
        prompts.append(Prompt(group, turn, item["captions"][0], prompt_seed(group, turn)))
    return PromptSet(
        prompts=tuple(prompts),
        true_pictures=lambda size: (item["image"][0] for item in items(size)),
        notes=notes,
    )
