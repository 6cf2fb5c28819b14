"""The prompts of an evaluation: their texts, seeds and true pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from imagen_jax.data.source import hash01


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One picture to draw.

    Attributes:
      group: kind of prompt.
      number: place in the group.
      text: the prompt of the cascade.
      seed: of the picture, in [0, 2^32).
      claims: what the text claims, for the scorer of the data; None without a scorer.
      repeat: 0 for the first picture of the text, 1 and more for further ones.
    """

    group: str
    number: int
    text: str
    seed: int
    claims: Any = None
    repeat: int = 0

    @property
    def name(self) -> str:
        """The stem of file names, unique within an evaluation."""
        name = f"{self.group.replace(' ', '_')}_{self.number:05d}"
        return f"{name}_{self.repeat}" if self.repeat else name

    def repeated(self, repeat: int) -> Prompt:
        """A further picture of the same text: with another seed."""
        return dataclasses.replace(
            self, seed=prompt_seed(self.group, self.number, repeat), repeat=repeat
        )


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts, the groups taking turns, and the pictures that their texts describe.

    Attributes:
      prompts: in order.
      true_pictures: gives the true pictures `[S, S, 3]` uint8 of a size S, in the same order.
      notes: remarks on the groups, for the reader of the report.
    """

    prompts: tuple[Prompt, ...]
    true_pictures: Callable[[int], Iterator[np.ndarray]]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, in order."""
        return tuple(dict.fromkeys(prompt.group for prompt in self.prompts))


def prompt_seed(group: str, number: int, repeat: int = 0) -> int:
    """The seed of a prompt, in [0, 2^32), from its group, its place in it and its repeat."""
    return int(hash01(f"evaluate/{group}/{number}/{repeat}") * 2**32)
