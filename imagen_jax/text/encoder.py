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
from imagen_jax.foreign_files import read_json_object
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.parallel.sharding import frozen_shardings
from imagen_jax.text import cleaning, clip, hf_files, prompt_weights, t5_load
from imagen_jax.text.clip import ClipConfig, ClipEncoder
from imagen_jax.text.t5 import T5Config, T5Encoder
from imagen_jax.text.tokenizer import SENTENCEPIECE, Tokenizer, load_tokenizer
from imagen_jax.types import Array, Params, TextCond

# The encoders inside the package.
EMBEDDED = {name: Path(__file__).parent / name for name in ("embedded", "embedded_icons")}

EncoderConfig = T5Config | ClipConfig


class TextSource(Protocol):
    """What gives training its text embeddings: an encoder, or a store of its embeddings.

    Attributes:
      dim: width D of the tokens.
      max_length: tokens L to which a caption is truncated.
      identity: hash of weights and architecture; embeddings of different identities do not mix.
      tokenizer_hash: hash of the tokenizer's file.
    """

    dim: int
    max_length: int
    identity: str
    tokenizer_hash: str

    def prepare(self, captions: Sequence[str]) -> Any:
        """Does the part of the work that needs no accelerator; may run in a thread."""
        ...

    def embed(self, prepared: Any, place: Callable[[np.ndarray], Array] = jnp.asarray) -> TextCond:
        """Does the rest: gives `[B, L, D]` f32 tokens, 0 where padded, and the mask `[B, L]`.

        All processes must call it in the same order.

        Args:
          prepared: the result of `prepare` for this process's rows.
          place: turns an array of this process's rows into a global array; the result of `embed`
            is sharded in the same way.
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
      max_length: tokens L to which a caption is truncated.
      cleaning: name of the caption cleaner, see `text.cleaning`.
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

        The tokens are sharded like the ids if those are on a mesh.
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
        """Encodes the result of `prepare`; see `TextSource`."""
        return self.encode(*map(place, prepared))

    def token_weights(self, captions: Sequence[str], weights: Sequence[np.ndarray]) -> np.ndarray:
        """The weights of the tokens `[B, L]` float32 from those of the characters.

        Args:
          captions: as `prepare` gets them.
          weights: of each caption, `[len(caption)]` float32.

        Raises:
          UserError: the tokenizer does not tell where its tokens lie, or captions are cleaned.
        """
        if self.cleaning != "none":
            raise UserError(
                f"weights of parts of a prompt do not work with text.cleaning={self.cleaning!r}, "
                "which changes the prompt: leave them out"
            )
        if self.tokenizer.spans is None:
            raise UserError(
                "weights of parts of a prompt need a tokenizer that tells where its tokens lie: a "
                f"{SENTENCEPIECE}, and sentencepiece 0.2.3 or later. Leave the weights out"
            )
        first, rows = len(self.tokenizer.start_ids), []
        for caption, own in zip(captions, weights, strict=True):
            text = caption.encode("utf-8", "replace").decode("utf-8")
            own = np.where([c.isspace() for c in caption], np.nan, own) if caption else own
            spans = self.tokenizer.spans(text)
            rows.append(prompt_weights.token_weights(spans, own, first, self.max_length))
        return np.stack(rows)

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
      Tokens `[B, L, D]` float32, rounded to the encoder's dtype, 0 where padded; and the mask.
    """
    network = T5Encoder(config) if isinstance(config, T5Config) else ClipEncoder(config)
    states = network.apply({"params": params}, ids, mask)
    # Rounded to the encoder's dtype, so that embeddings stored in that dtype are the same numbers.
    states = states.astype(config.dtype).astype(jnp.float32)
    text = TextCond(tokens=jnp.where(mask[:, :, None], states, 0.0), mask=mask)
    return text if sharding is None else jax.lax.with_sharding_constraint(text, sharding)


def load_encoder(
    config: TextConfig, *, dtype: str | None = None, mesh: Mesh | None = None
) -> TextEncoder:
    """Loads a text encoder.

    In a job of several processes all must have the same files. Only the first one hashes them.

    Args:
      config: `encoder` is a name in `EMBEDDED`, the path of a Hugging Face directory, or a hub id.
        The `model_type` in its config.json decides between T5 and CLIP.
      dtype: of parameters and matrix products. By default float32 for the encoders inside the
        package and bfloat16 for others.
      mesh: where the parameters go; see `parallel.sharding.frozen_shardings`. None: the default
        device.

    Raises:
      UserError: the directory does not exist; a file is missing, damaged or does not fit the
        others; or `max_length` is not positive.
    """
    files = _EncoderFiles.find(config, dtype)
    identity = files.identity(mesh)
    shardings = None
    if mesh is not None:
        abstract = files.loader.abstract_params(files.network, files.network.dtype)
        shardings = frozen_shardings(abstract, mesh)
    return TextEncoder(
        tokenizer=files.tokenizer,
        params=files.loader.load_params(
            files.directory, files.network, files.network.dtype, shardings
        ),
        config=files.network,
        identity=identity,
        tokenizer_hash=files.tokenizer.hash,
        max_length=config.max_length,
        cleaning=config.cleaning,
    )


def is_local(config: TextConfig) -> bool:
    """Whether the encoder's files are in a local directory, so that nothing has to be fetched."""
    return config.encoder in EMBEDDED or hf_files.local_directory(config.encoder) is not None


def text_dim(config: TextConfig) -> int:
    """Width D of an encoder's tokens, without loading parameters; raises as `load_encoder`."""
    return _EncoderFiles.find(config, None).network.d_model


def identify(config: TextConfig, mesh: Mesh | None = None) -> tuple[str, str]:
    """Identity and tokenizer hash of an encoder, without loading parameters.

    Arguments and errors as of `load_encoder`.
    """
    files = _EncoderFiles.find(config, None)
    return files.identity(mesh), files.tokenizer.hash


@dataclasses.dataclass(frozen=True)
class _EncoderFiles:
    """The directory of an encoder, its network's config and its tokenizer."""

    directory: Path
    network: EncoderConfig
    tokenizer: Tokenizer

    @property
    def loader(self) -> ModuleType:
        """The module that reads the parameters of this kind of encoder."""
        return t5_load if isinstance(self.network, T5Config) else clip

    @classmethod
    def find(cls, config: TextConfig, dtype: str | None) -> _EncoderFiles:
        if config.max_length < 1:
            raise UserError(f"text.max_length is {config.max_length}: it must be at least 1.")
        directory = EMBEDDED.get(config.encoder) or hf_files.find_directory(config.encoder)
        hf_files.check_directory(directory)
        dtype = dtype or ("float32" if config.encoder in EMBEDDED else "bfloat16")
        network = _read_config(directory, dtype)
        tokenizer = load_tokenizer(directory)
        if isinstance(network, ClipConfig) and config.max_length > network.max_positions:
            raise UserError(
                f"text.max_length is {config.max_length}: the CLIP in {directory} takes at most "
                f"{network.max_positions} tokens."
            )
        if tokenizer.vocab_size > network.vocab_size:
            raise UserError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, but the encoder "
                f"{network.vocab_size}: they are not of the same model."
            )
        return cls(directory, network, tokenizer)

    def identity(self, mesh: Mesh | None) -> str:
        def compute() -> str:
            hf_files.check_checksums(self.directory)
            return hf_files.identity(self.directory, self.network)

        return compute() if mesh is None else _by_first_process(compute, mesh)


def _read_config(directory: Path, dtype: str) -> EncoderConfig:
    """The config of a CLIP if config.json names one, otherwise that of a T5."""
    path = directory / "config.json"
    values = read_json_object(path) if path.is_file() else {}
    if values.get("model_type") in clip.MODEL_TYPES:
        return clip.read_config(values, path, dtype)
    return t5_load.read_config(directory, dtype)


def _by_first_process(compute: Callable[[], str], mesh: Mesh) -> str:
    """The result of process 0, computed there alone if the mesh spans several processes."""
    if len({device.process_index for device in mesh.devices.flat}) == 1:
        return compute()
    return Agreement().from_main(compute() if jax.process_index() == 0 else None)
