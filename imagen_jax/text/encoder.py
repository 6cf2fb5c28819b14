"""The frozen text encoder: captions to `TextCond`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from imagen_jax.config import TextConfig
from imagen_jax.errors import UserError
from imagen_jax.parallel.sharding import frozen_shardings
from imagen_jax.text import cleaning, clip, hf_files, t5_load
from imagen_jax.text.clip import ClipConfig, ClipEncoder
from imagen_jax.text.t5 import T5Config, T5Encoder
from imagen_jax.text.tokenizer import Tokenizer, load_tokenizer
from imagen_jax.types import Array, Params, TextCond

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded"

EncoderConfig = T5Config | ClipConfig


class TextSource(Protocol):
    """What training asks for text: an encoder, or a store of what one has encoded.

    Attributes:
      dim: width D of the tokens.
      max_length: tokens L a caption is cut to.
      identity: hash of weights and architecture; embeddings of different identities do not mix.
      tokenizer_hash: hash of the tokenizer's file.
    """

    dim: int
    max_length: int
    identity: str
    tokenizer_hash: str

    def prepare(self, captions: Sequence[str]) -> Any:
        """The part of the work that needs no accelerator; may run in a thread."""
        ...

    def embed(self, prepared: Any, place: Callable[[np.ndarray], Array] = jnp.asarray) -> TextCond:
        """The rest: `[B, L, D]` f32 tokens, 0 where padded, and the mask `[B, L]`.

        Args:
          prepared: what `prepare` returned for this process's rows.
          place: makes a global array of an array of this process's rows; the result is sharded
            likewise. All processes call this in the same order.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer and a frozen encoder; a `TextSource`.

    Attributes:
      tokenizer: captions to ids.
      params: of the network.
      config: the network's shape and compute dtype.
      identity: hash of weights and architecture; embeddings of different identities do not mix.
      tokenizer_hash: hash of the tokenizer's file.
      max_length: tokens a caption is cut to.
      cleaning: what is done to captions before, see `text.cleaning`.
    """

    tokenizer: Tokenizer
    params: Params
    config: EncoderConfig
    identity: str
    tokenizer_hash: str
    max_length: int
    cleaning: str = "none"

    @property
    def dim(self) -> int:
        """Width D of the tokens."""
        return self.config.d_model

    def encode(self, ids: Array, mask: Array) -> TextCond:
        """Encodes ids `[B, L]` int and mask `[B, L]` bool; compiled once per shape.

        Where they lie on a mesh, the tokens are sharded as they are.
        """
        ids, mask = jnp.asarray(ids), jnp.asarray(mask)
        sharding = ids.sharding if isinstance(ids.sharding, NamedSharding) else None
        return encode(self.params, self.config, ids, mask, sharding)

    def prepare(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids `[B, L]` int32 and their mask `[B, L]` bool, L = `max_length`."""
        captions = [cleaning.clean(caption, self.cleaning) for caption in captions]
        return self.tokenizer(captions, self.max_length)

    def embed(
        self,
        prepared: tuple[np.ndarray, np.ndarray],
        place: Callable[[np.ndarray], Array] = jnp.asarray,
    ) -> TextCond:
        """Encodes what `prepare` returned; see `TextSource`."""
        return self.encode(*map(place, prepared))

    def encode_captions(self, captions: Sequence[str]) -> TextCond:
        """Tokenizes and encodes `[B]` captions at L = `max_length`."""
        return self.embed(self.prepare(captions))


@functools.partial(jax.jit, static_argnames=("config", "sharding"))
def encode(
    params: Params,
    config: EncoderConfig,
    ids: Array,
    mask: Array,
    sharding: NamedSharding | None = None,
) -> TextCond:
    """Encodes token ids; a pure function, for use inside larger programs.

    Args:
      params: of the network.
      config: its shape and, by its class, its kind (static).
      ids: `[B, L]` int.
      mask: `[B, L]` bool, True where a token is valid.
      sharding: of the result (None: the compiler's choice).

    Returns:
      tokens `[B, L, D]` float32 with values of the encoder's dtype, 0 where padded, and the mask.
    """
    network = T5Encoder(config) if isinstance(config, T5Config) else ClipEncoder(config)
    states = network.apply({"params": params}, ids, mask)
    # Rounded to the encoder's dtype, so that embeddings stored in it are the same numbers.
    states = states.astype(config.dtype).astype(jnp.float32)
    text = TextCond(tokens=jnp.where(mask[:, :, None], states, 0.0), mask=mask)
    return text if sharding is None else jax.lax.with_sharding_constraint(text, sharding)


def load_encoder(
    config: TextConfig, *, dtype: str | None = None, mesh: Mesh | None = None
) -> TextEncoder:
    """Loads a text encoder.

    In a job of several processes the directory must be the same for all of them; the first one
    alone reads it whole, for its hash.

    Args:
      config: `encoder` is "embedded", the path of a Hugging Face directory, or a hub id; the
        `model_type` of its config.json tells a T5 from a CLIP.
      dtype: of parameters and matrix products. By default float32 for the embedded encoder and
        bfloat16 for others.
      mesh: where the parameters go; large ones are spread over it, see
        `parallel.sharding.frozen_shardings`. None: the default device.

    Raises:
      UserError: the directory does not exist, a file is missing or damaged or does not fit the
        others, or `max_length` is not positive.
    """
    parts = _Parts.find(config, dtype)
    identity = parts.identity(mesh)
    shardings = None
    if mesh is not None:
        abstract = parts.files.abstract_params(parts.network, parts.network.dtype)
        shardings = frozen_shardings(abstract, mesh)
    return TextEncoder(
        tokenizer=parts.tokenizer,
        params=parts.files.load_params(
            parts.directory, parts.network, parts.network.dtype, shardings
        ),
        config=parts.network,
        identity=identity,
        tokenizer_hash=parts.tokenizer.hash,
        max_length=config.max_length,
        cleaning=config.cleaning,
    )


def is_here(config: TextConfig) -> bool:
    """Whether the encoder's files are on this machine, so that nothing has to be fetched."""
    return config.encoder == EMBEDDED or Path(config.encoder).expanduser().is_dir()


def text_dim(config: TextConfig) -> int:
    """Width D of an encoder's tokens, without its parameters; raises as `load_encoder` does."""
    return _Parts.find(config, None).network.d_model


def identify(config: TextConfig, mesh: Mesh | None = None) -> tuple[str, str]:
    """Identity and tokenizer hash of an encoder, without its parameters.

    Args:
      config, mesh: as in `load_encoder`, whose errors it raises.
    """
    parts = _Parts.find(config, None)
    return parts.identity(mesh), parts.tokenizer.hash


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a directory says of itself, the weights aside."""

    directory: Path
    network: EncoderConfig
    tokenizer: Tokenizer

    @property
    def files(self) -> ModuleType:
        """The module that knows the names of the kind's tensors."""
        return t5_load if isinstance(self.network, T5Config) else clip

    @classmethod
    def find(cls, config: TextConfig, dtype: str | None) -> _Parts:
        if config.max_length < 1:
            raise UserError(f"text.max_length is {config.max_length}: it must be at least 1.")
        embedded = config.encoder == EMBEDDED
        directory = EMBEDDED_DIRECTORY if embedded else hf_files.find_directory(config.encoder)
        dtype = dtype or ("float32" if embedded else "bfloat16")
        network = _read_config(directory, dtype)
        tokenizer = load_tokenizer(directory)
        if isinstance(network, ClipConfig) and config.max_length > network.max_positions:
            raise UserError(
                f"text.max_length is {config.max_length}: the CLIP in {directory} reads at most "
                f"{network.max_positions} tokens."
            )
        if tokenizer.vocab_size > network.vocab_size:
            raise UserError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the encoder "
                f"{network.vocab_size}: they are not of the same model."
            )
        return cls(directory, network, tokenizer)

    def identity(self, mesh: Mesh | None) -> str:
        def compute() -> str:
            hf_files.check_checksums(self.directory)
            return hf_files.identity(self.directory, self.network)

        return compute() if mesh is None else _of_first_process(compute, mesh)


def _read_config(directory: Path, dtype: str) -> EncoderConfig:
    """By the kind that config.json names; other kinds are refused as not being a T5."""
    path = directory / "config.json"
    values = hf_files.read_json(path) if path.is_file() else {}
    if values.get("model_type") in clip.MODEL_TYPES:
        return clip.read_config(values, path, dtype)
    return t5_load.read_config(directory, dtype)


def _of_first_process(function: Callable[[], str], mesh: Mesh) -> str:
    """A hash in hex that the first of the mesh's processes computes for all of them."""
    if len({device.process_index for device in mesh.devices.flat}) == 1:
        return function()
    from jax.experimental import multihost_utils

    text = function() if jax.process_index() == 0 else "0" * 64
    value = np.frombuffer(bytes.fromhex(text), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(value))).hex()
