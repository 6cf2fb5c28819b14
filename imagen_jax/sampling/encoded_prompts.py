"""The prompts of a call as text conditions, encoded when they are needed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import jax
import numpy as np

from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.prompt_weights import apply_weights, parse_weights
from imagen_jax.types import TextCond

logger = logging.getLogger("imagen_jax")

PROMPTS_PER_ENCODING = 32


class EncodedPrompts:
    """Text conditions by the numbers of the prompts.

    Prompts are encoded in groups of `PROMPTS_PER_ENCODING`, of which the last used are kept. The
    groups do not depend on what is asked for, so neither does a prompt's condition.

    Args:
      encoder: the text encoder.
      prompts: any text. A warning says how many are cut.
      keep: prompts whose conditions stay in memory, at least; None: all.
      weighted: whether the prompts have weights, see `text.prompt_weights`.

    Raises:
      UserError: weights that cannot be read, or that the encoder cannot take.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        prompts: Sequence[str],
        keep: int | None = None,
        *,
        weighted: bool = False,
    ):
        self._weights = None
        if weighted and prompts:
            parsed = [parse_weights(prompt) for prompt in prompts]
            prompts = [text for text, _ in parsed]
            self._weights = encoder.token_weights(prompts, [weights for _, weights in parsed])
        size = PROMPTS_PER_ENCODING
        before = encoder.tokenizer.num_truncated
        groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        self._encoder = encoder
        self._tokens = [encoder.prepare(group) for group in groups]
        # As many prompts as are kept may begin and end within a group.
        kept = None if keep is None else keep // size + 2
        self._group = functools.lru_cache(maxsize=kept)(self._encode)
        cut = encoder.tokenizer.num_truncated - before
        if cut:
            logger.warning(
                "%d of %d prompts are longer than the %d tokens that the text encoder reads; "
                "the rest of them is ignored",
                cut,
                len(prompts),
                encoder.max_length,
            )

    def __call__(self, numbers: np.ndarray) -> TextCond:
        """The conditions of the prompts `numbers` `[B]`, batch size B, on the host."""
        size = PROMPTS_PER_ENCODING
        rows = [
            jax.tree.map(lambda a, i=number: a[i % size], self._group(int(number) // size))
            for number in numbers
        ]
        return jax.tree.map(lambda *parts: np.stack(parts), *rows)

    def _encode(self, group: int) -> TextCond:
        text = jax.device_get(self._encoder.embed(self._tokens[group]))
        if self._weights is None:
            return text
        empty = jax.device_get(self._encoder.encode_captions([""])).tokens[0, 0]
        start = group * PROMPTS_PER_ENCODING
        weights = self._weights[start : start + len(text.mask)]
        return TextCond(apply_weights(text.tokens, weights, empty), text.mask)
