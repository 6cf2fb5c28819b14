"""Structures that pass between the layers: text conditions and training batches."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
Params = dict[str, Any]

# The axes of the mesh over which the leading axis of a batch is sharded.
BATCH_AXES = ("data", "fsdp")


@flax.struct.dataclass
class TextCond:
    """Encoded captions.

    Attributes:
      tokens: `[B, L, D]` float, the last hidden state of the frozen encoder.
      mask: `[B, L]` bool, True where a token is valid. Every row has at least one valid token.
    """

    tokens: Array
    mask: Array


@flax.struct.dataclass
class Batch:
    """One training batch.

    Attributes:
      image: `[B, H, W, 3]` uint8, the clean picture of the stage's resolution (or a crop of it).
      text: the encoded captions of the pictures, batch size B.
    """

    image: Array
    text: TextCond


def null_text(text: TextCond) -> TextCond:
    """The unconditional text: one valid token of zeros, of the same shapes and dtypes as `text`.

    The paper zeroes the text embeddings (section 4.1) and leaves the mask open; one valid token
    keeps every softmax over text defined.
    """
    mask = jnp.zeros_like(text.mask).at[:, 0].set(True)
    return TextCond(tokens=jnp.zeros_like(text.tokens), mask=mask)


def drop_text(text: TextCond, drop: Array) -> TextCond:
    """Replaces the rows of `text` where `drop` (`[B]` bool) is True by the null text."""
    null = null_text(text)
    return TextCond(
        tokens=jnp.where(drop[:, None, None], null.tokens, text.tokens),
        mask=jnp.where(drop[:, None], null.mask, text.mask),
    )


def normalize_image(image: Array) -> Array:
    """uint8 `u` in [0, 255] to float32 `x = u / 127.5 - 1` in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: Array) -> Array:
    """float `x` in [-1, 1] (clipped to it) to uint8, the inverse of `normalize_image`."""
    return jnp.round((jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
