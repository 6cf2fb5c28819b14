"""Chooses the prompts of an evaluation, with their seeds and their true pictures.

Prompt and seed are pure functions of the group and the number within it. So two checkpoints are
asked for the same pictures, and a short evaluation has the first prompts of a long one. Groups take
turns, so their sizes differ by one at most.

A source with a scorer has the groups of its scorer. Other sources have two: "held in", captions of
the training split, and "held out".
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_source
from imagen_jax.data.pipeline import batches
from imagen_jax.data.source import Source
from imagen_jax.errors import UserError
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet, prompt_seed
from imagen_jax.evaluation.scorer import scorer_of

# Seed of the order in which captions of files are taken.
ORDER_SEED = 2022
# Side of the pictures in pixels where only their captions are used.
_SMALL = 8
# Group: split.
FILE_GROUPS = {"held in": "train", "held out": "held_out"}


def load_prompts(data: DataConfig, number: int) -> PromptSet:
    """The first `number` prompts for a cascade that was trained on `data`.

    Raises:
      UserError: fewer prompts than groups, or the data does not exist.
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

    sizes = {group: len(source(group, _SMALL)) for group in FILE_GROUPS}
    groups = [group for group in FILE_GROUPS if sizes[group]]
    notes = ()
    if not sizes["held out"]:
        notes = ("The held-out split is empty, so all prompts are held in.",)
    elif len(set(sizes.values())) == 1:
        notes = (
            "The data set is too small for a held-out split: both groups of prompts are captions "
            "of the training split.",
        )

    def items(size: int) -> Iterator[dict]:
        # As in training: an item that cannot be read is replaced by the next one that can.
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
    for place, item in enumerate(items(_SMALL)):
        turn, group = divmod(place, len(groups))
        group = groups[group]
        prompts.append(Prompt(group, turn, item["captions"][0], prompt_seed(group, turn)))
    return PromptSet(
        prompts=tuple(prompts),
        true_pictures=lambda size: (item["image"][0] for item in items(size)),
        notes=notes,
    )
