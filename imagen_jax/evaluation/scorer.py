"""Scorers: what judges whether the pictures of a data source obey their captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.evaluation.caption_accuracy import Score
from imagen_jax.evaluation.icons_scorer import IconsScorer, is_icons
from imagen_jax.evaluation.prompt_set import Prompt, PromptSet
from imagen_jax.evaluation.shapes_scorer import ShapesScorer


class Scorer(Protocol):
    """Judges pictures by the captions that they were drawn for.

    A report has the shares of accepted pictures, by group and by part, where there is a scorer.

    Attributes:
      groups: names of the groups of its prompts, in order.
      parts: the parts of a caption that it checks, in the order of tables.
      min_resolution: side in pixels of the smallest picture that it can judge.
      notes: what a reader must know of its figures, for example how good it is; read after `score`.
    """

    groups: tuple[str, ...]
    parts: tuple[str, ...]
    min_resolution: int

    @property
    def notes(self) -> tuple[str, ...]: ...

    def prompts(self, number: int) -> PromptSet:
        """The first `number` prompts, the groups taking turns, with the claims of their texts."""
        ...

    def score(self, pictures: Iterable[np.ndarray], prompts: Sequence[Prompt]) -> list[Score]:
        """One score for each picture and its prompt.

        Args:
          pictures: `[S, S, 3]` uint8, S at least `min_resolution`.
          prompts: of `prompts`; equally many.
        """
        ...


def scorer_of(data: DataConfig) -> Scorer | None:
    """The scorer of a data source; None if captions of the source cannot be checked.

    The only place of an evaluation that depends on the name of the source.
    """
    if data.source == "shapes":
        return ShapesScorer()
    return IconsScorer(data) if is_icons(data) else None
