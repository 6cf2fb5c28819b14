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
      text: what the cascade is asked for.
      seed: of the picture, in [0, 2^32).
      claims: what the text claims, for the scorer of the data; None without a scorer.
      repeat: 0, or which further picture of the same text this is.
    """

    group: str
    number: int
    text: str
    seed: int
    claims: Any = None
    repeat: int = 0

    @property
    def name(self) -> str:
        """For file names; no two prompts of an evaluation share one."""
        name = f"{self.group.replace(' ', '_')}_{self.number:05d}"
        return f"{name}_{self.repeat}" if self.repeat else name

    def again(self, repeat: int) -> Prompt:
        """The same text with another seed."""
        return dataclasses.replace(
            self, seed=prompt_seed(self.group, self.number, repeat), repeat=repeat
        )


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


def prompt_seed(group: str, number: int, repeat: int = 0) -> int:
    """The seed of a prompt, in [0, 2^32), from its group, its place in it and its repeat."""
    return int(hash01(f"evaluate/{group}/{number}/{repeat}") * 2**32)
