"""Hugging Face T5 directories: `config.json` and safetensors, to and from our parameters.

Reads a single `model.safetensors` or a sharded `model.safetensors.index.json`, of a whole T5 (the
decoder is skipped) or of its encoder, in any float type.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import UserError, brief
from imagen_jax.foreign_files import read_json_object
from imagen_jax.text import hf_files
from imagen_jax.text.hf_files import WEIGHTS, Leaf, get, read_fields, single_leaf, stacked_leaf
from imagen_jax.text.t5 import FEED_FORWARD_KINDS, T5Config
from imagen_jax.types import Params

_EMBEDDING_NAMES = ("shared.weight", "encoder.embed_tokens.weight")
_IGNORED = re.compile(r"decoder\.|lm_head\.|shared\.weight$|encoder\.embed_tokens\.weight$")
# Field of T5Config: its name in Hugging Face's config.json.
_CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "d_kv": "d_kv",
    "d_ff": "d_ff",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
    "feed_forward": "feed_forward_proj",
}


def read_config(directory: Path, dtype: str = "float32") -> T5Config:
    """The T5Config of a Hugging Face directory.

    Raises:
      UserError: no config.json, invalid JSON, not a T5, a size that no T5 has, or an unknown kind
        of feed-forward.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: the text encoder must be 'embedded' or a Hugging Face "
            "directory of a T5 or a CLIP with config.json, safetensors and a tokenizer."
        )
    values = read_json_object(path)
    if values.get("model_type") != "t5":
        raise UserError(
            f"{path} has model_type {brief(values.get('model_type'))}: only 't5' and 'clip' are "
            "supported."
        )
    config = T5Config(dtype=dtype, **read_fields(T5Config, _CONFIG_KEYS, values, path))
    if config.feed_forward not in FEED_FORWARD_KINDS:
        raise UserError(
            f"{path} has feed_forward_proj {brief(config.feed_forward)}: "
            f"only {' and '.join(FEED_FORWARD_KINDS)} are supported."
        )
    # A half of the buckets is for each direction, and half of those for single distances.
    if config.num_buckets < 4 or config.max_distance <= config.num_buckets // 4:
        raise UserError(
            f"{path} has {config.num_buckets} buckets of relative positions up to a distance of "
            f"{config.max_distance}: at least 4 are needed, and a distance above a quarter of them."
        )
    return config


def abstract_params(config: T5Config, dtype: str) -> Params:
    """Shapes and dtypes of the parameters that `load_params` reads."""
    return hf_files.abstract_params(_leaves(config, _EMBEDDING_NAMES[0]), dtype)


def tensor_names(config: T5Config) -> set[str]:
    """Names of the tensors of an encoder in the files."""
    return {key for leaf in _leaves(config, _EMBEDDING_NAMES[0]) for key in leaf.keys}


def canonical_name(name: str) -> str:
    """The name that `tensor_names` uses for a tensor with two names."""
    return _EMBEDDING_NAMES[0] if name in _EMBEDDING_NAMES else name


def load_params(
    directory: Path, config: T5Config, dtype: str = "float32", shardings: Params | None = None
) -> Params:
    """Reads the encoder's parameters; each device's part goes directly to the device.

    Args:
      directory: with the weights in one file or several.
      config: of `read_config`.
      dtype: of the parameters.
      shardings: a tree like the parameters; None puts them on the default device.

    Raises:
      UserError: a file is damaged, or a tensor is missing, has a wrong shape or belongs to an
        encoder of another depth.
    """
    with hf_files.open_tensors(directory) as files:
        embedding = next((key for key in _EMBEDDING_NAMES if key in files), _EMBEDDING_NAMES[0])
        leaves = _leaves(config, embedding)
        what = f"an encoder of {config.num_layers} layers with feed-forward {config.feed_forward!r}"
        hf_files.check_tensors(directory, files, leaves, _IGNORED, what)
        return hf_files.load_params(files, leaves, dtype, shardings)


def save_params(directory: Path, config: T5Config, params: Params, dtype: str = "float32") -> None:
    """Writes `config.json` and `model.safetensors` that `transformers` reads too."""
    from safetensors.numpy import save_file

    tensors = {}
    for leaf in _leaves(config, _EMBEDDING_NAMES[0]):
        value = np.asarray(get(params, leaf.path))
        for tensor, key in zip(value if leaf.stacked else value[None], leaf.keys, strict=True):
            if leaf.transposed:
                tensor = tensor.reshape(leaf.file_shape[::-1]).T
            tensors[key] = np.ascontiguousarray(tensor.astype(jnp.dtype(dtype)))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors lets only the owner read its files.
    write_config(directory, config)


def write_config(directory: Path, config: T5Config) -> None:
    """Writes the `config.json` of an encoder of this shape."""
    values = {hf: getattr(config, ours) for ours, hf in _CONFIG_KEYS.items()}
    values |= {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _leaves(config: T5Config, embedding: str) -> list[Leaf]:
    c = config
    inner = c.num_heads * c.d_kv
    heads_in, heads_out = (c.d_model, c.num_heads, c.d_kv), (c.num_heads, c.d_kv, c.d_model)
    attention, ff = "0.SelfAttention", "1.DenseReluDense"
    # (our path, name within the layer, shape in the file, our shape); matrices are transposed.
    layer = [
        ("attention_norm/scale", "0.layer_norm", (c.d_model,), (c.d_model,)),
        ("attention/query/kernel", f"{attention}.q", (inner, c.d_model), heads_in),
        ("attention/key/kernel", f"{attention}.k", (inner, c.d_model), heads_in),
        ("attention/value/kernel", f"{attention}.v", (inner, c.d_model), heads_in),
        ("attention/out/kernel", f"{attention}.o", (c.d_model, inner), heads_out),
        ("feed_forward_norm/scale", "1.layer_norm", (c.d_model,), (c.d_model,)),
        ("feed_forward/down/kernel", f"{ff}.wo", (c.d_model, c.d_ff), (c.d_ff, c.d_model)),
    ]
    wide = ((c.d_ff, c.d_model), (c.d_model, c.d_ff))
    if c.feed_forward == "gated-gelu":
        layer.append(("feed_forward/gate/kernel", f"{ff}.wi_0", *wide))
        layer.append(("feed_forward/up/kernel", f"{ff}.wi_1", *wide))
    else:
        layer.append(("feed_forward/up/kernel", f"{ff}.wi", *wide))
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    single = [
        ("embedding", embedding, (c.vocab_size, c.d_model)),
        ("relative_bias", bias, (c.num_buckets, c.num_heads)),
        ("final_norm/scale", "encoder.final_layer_norm.weight", (c.d_model,)),
    ]
    return [
        *(single_leaf(path, key, shape) for path, key, shape in single),
        *(
            stacked_leaf(
                f"blocks/{path}",
                [f"encoder.block.{i}.layer.{name}.weight" for i in range(c.num_layers)],
                *shapes,
            )
            for path, name, *shapes in layer
        ),
    ]
