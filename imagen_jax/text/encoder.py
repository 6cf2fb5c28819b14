"""The frozen text encoder: captions to `TextCond`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from imagen_jax.config import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.text import t5_load
from imagen_jax.text.t5 import T5Config, T5Encoder
from imagen_jax.text.tokenizer import Tokenizer, load_tokenizer
from imagen_jax.types import Array, Params, TextCond

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded"


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer and a frozen T5 encoder.

    Attributes:
      tokenizer: captions to ids.
      params: of `T5Encoder`, on the default device.
      config: the encoder's shape and compute dtype.
      identity: hash of weights and architecture; embeddings of different identities do not mix.
      tokenizer_hash: hash of the tokenizer's file.
      max_length: tokens a caption is cut to.
    """

    tokenizer: Tokenizer
    params: Params
    config: T5Config
    identity: str
    tokenizer_hash: str
    max_length: int

    @property
    def dim(self) -> int:
        """Width D of the tokens."""
        return self.config.d_model

    def encode(self, ids: Array, mask: Array) -> TextCond:
        """Encodes ids `[B, L]` int and mask `[B, L]` bool; compiled once per shape."""
        return encode(self.params, self.config, jnp.asarray(ids), jnp.asarray(mask))

    def encode_captions(self, captions: Sequence[str]) -> TextCond:
        """Tokenizes and encodes `[B]` captions at L = `max_length`."""
        return self.encode(*self.tokenizer(captions, self.max_length))


@functools.partial(jax.jit, static_argnames="config")
def encode(params: Params, config: T5Config, ids: Array, mask: Array) -> TextCond:
    """Encodes token ids; a pure function, for use inside larger programs.

    Args:
      params: of `T5Encoder`.
      config: its shape (static).
      ids: `[B, L]` int.
      mask: `[B, L]` bool, True where a token is valid.

    Returns:
      tokens `[B, L, D]` float32, 0 where padded, and the mask.
    """
    states = T5Encoder(config).apply({"params": params}, ids, mask)
    return TextCond(tokens=jnp.where(mask[:, :, None], states, 0.0), mask=mask)


def load_encoder(config: TextConfig, *, dtype: str | None = None) -> TextEncoder:
    """Loads a text encoder.

    Args:
      config: `encoder` is "embedded" or the path of a Hugging Face T5 directory.
      dtype: of parameters and matrix products. By default float32 for the embedded encoder and
        bfloat16 for others.

    Raises:
      UserError: the directory does not exist, a file is missing or damaged or does not fit the
        others, or `max_length` is not positive.
    """
    if config.max_length < 1:
        raise UserError(f"text.max_length is {config.max_length}: it must be at least 1.")
    embedded = config.encoder == EMBEDDED
    directory = EMBEDDED_DIRECTORY if embedded else Path(config.encoder).expanduser()
    if not directory.is_dir():
        raise UserError(
            f"text.encoder is {config.encoder!r}: neither 'embedded' nor a directory that exists."
        )
    dtype = dtype or ("float32" if embedded else "bfloat16")
    t5_load.check_checksums(directory)
    t5_config = t5_load.read_config(directory, dtype)
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size > t5_config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the encoder "
            f"{t5_config.vocab_size}: they are not of the same model."
        )
    params = jax.tree.map(jnp.asarray, t5_load.load_params(directory, t5_config, dtype))
    return TextEncoder(
        tokenizer=tokenizer,
        params=params,
        config=t5_config,
        identity=t5_load.identity(directory, t5_config),
        tokenizer_hash=tokenizer.hash,
        max_length=config.max_length,
    )
