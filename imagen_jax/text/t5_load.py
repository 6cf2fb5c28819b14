"""Hugging Face T5 directories: `config.json` and safetensors, to and from our parameters.

Reads a single `model.safetensors` or a sharded `model.safetensors.index.json`, of a whole T5 (the
decoder is skipped) or of its encoder, in any float type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.text.t5 import FEED_FORWARD_KINDS, T5Config
from imagen_jax.types import Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHECKSUMS = "SHA256SUMS"
_EMBEDDING_NAMES = ("shared.weight", "encoder.embed_tokens.weight")
_SKIPPED = ("decoder.", "lm_head.")
# Hugging Face's name of a field of T5Config.
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


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Where one of our parameters comes from.

    Attributes:
      path: our names from the root.
      keys: Hugging Face's names; one per layer for stacked parameters.
      file_shape: of each tensor in the file.
      shape: of each of ours, without the layer axis. Linear layers are transposed first.
      stacked, transposed: whether there is a layer axis; whether `shape` is of the transpose.
    """

    path: tuple[str, ...]
    keys: tuple[str, ...]
    file_shape: tuple[int, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool


def read_config(directory: Path, dtype: str = "float32") -> T5Config:
    """The T5Config of a Hugging Face directory.

    Raises:
      UserError: no config.json, not JSON, not a T5, or a feed-forward kind that is not known.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: the text encoder must be 'embedded' or a Hugging Face T5 "
            "directory with config.json, safetensors and a tokenizer."
        )
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): fetch the file again.") from error
    if values.get("model_type") != "t5":
        raise UserError(f"{path} has model_type {values.get('model_type')!r}: only 't5' is read.")
    config = T5Config(
        dtype=dtype, **{ours: values[hf] for ours, hf in _CONFIG_KEYS.items() if hf in values}
    )
    if config.feed_forward not in FEED_FORWARD_KINDS:
        raise UserError(
            f"{path} has feed_forward_proj {config.feed_forward!r}: "
            f"only {' and '.join(FEED_FORWARD_KINDS)} are known."
        )
    return config


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, in a fixed order.

    Raises:
      UserError: none, or one that the index names is missing.
    """
    index = directory / INDEX
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not index.is_file():
        raise UserError(
            f"{directory} holds neither {WEIGHTS} nor {INDEX}. A directory with only "
            "pytorch_model.bin has to be saved as safetensors first."
        )
    names = json.loads(index.read_text())["weight_map"].values()
    files = sorted({directory / name for name in names})
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, although {index.name} names it: fetch it again.")
    return files


def load_params(directory: Path, config: T5Config, dtype: str = "float32") -> Params:
    """Reads the encoder's parameters as numpy arrays of type `dtype`.

    Raises:
      UserError: a file is damaged, a tensor is missing, has another shape, or belongs to an
        encoder of other depth.
    """
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        where = {}
        for path in weight_files(directory):
            try:
                file = stack.enter_context(safe_open(path, framework="np"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be read ({error}): fetch it again.") from error
            where.update(dict.fromkeys(file.keys(), file))
        embedding = next((key for key in _EMBEDDING_NAMES if key in where), _EMBEDDING_NAMES[0])
        leaves = _leaves(config, embedding)
        wanted = {key for leaf in leaves for key in leaf.keys}
        strange = [
            key
            for key in where
            if key not in wanted and key not in _EMBEDDING_NAMES and not key.startswith(_SKIPPED)
        ]
        if missing := sorted(wanted - set(where)):
            raise UserError(f"{directory}: tensor {missing[0]!r} (of {len(missing)}) is missing.")
        if strange:
            raise UserError(
                f"{directory}: tensor {strange[0]!r} (of {len(strange)}) does not belong to an "
                f"encoder of {config.num_layers} layers with feed-forward {config.feed_forward!r}: "
                "config.json and the weights are not of the same model."
            )
        params: Params = {}
        for leaf in leaves:
            out = np.empty((len(leaf.keys), *leaf.shape), jnp.dtype(dtype))
            for layer, key in enumerate(leaf.keys):
                tensor = where[key].get_tensor(key)
                if tensor.shape != leaf.file_shape:
                    raise UserError(
                        f"{directory}: {key!r} has shape {tensor.shape}, config.json implies "
                        f"{leaf.file_shape}."
                    )
                tensor = tensor.T if leaf.transposed else tensor
                out[layer] = tensor.reshape(leaf.shape).astype(out.dtype)
            _put(params, leaf.path, out if leaf.stacked else out[0])
    return params


def save_params(directory: Path, config: T5Config, params: Params, dtype: str = "float32") -> None:
    """Writes `config.json` and `model.safetensors` that `transformers` reads too."""
    from safetensors.numpy import save_file

    tensors = {}
    for leaf in _leaves(config, _EMBEDDING_NAMES[0]):
        value = np.asarray(_get(params, leaf.path))
        for tensor, key in zip(value if leaf.stacked else value[None], leaf.keys, strict=True):
            if leaf.transposed:
                tensor = tensor.reshape(leaf.file_shape[::-1]).T
            tensors[key] = np.ascontiguousarray(tensor.astype(jnp.dtype(dtype)))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner reads.
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


def identity(directory: Path, config: T5Config) -> str:
    """SHA-256 (hex) over the weight files and the architecture: what the output depends on."""
    shape = dataclasses.asdict(dataclasses.replace(config, dtype=""))
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for path in weight_files(directory):
        digest.update(file_hash(path).encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(directory: Path, names: list[str]) -> None:
    """Writes `SHA256SUMS` in the format of the `sha256sum` command."""
    lines = [f"{file_hash(directory / name)}  {name}\n" for name in names]
    (directory / CHECKSUMS).write_text("".join(lines))


def check_checksums(directory: Path) -> None:
    """Compares the files with `SHA256SUMS`, where the directory has one.

    Raises:
      UserError: a file that it lists is missing or has changed.
    """
    path = directory / CHECKSUMS
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        expected, name = line.split()
        file = directory / name
        if not file.is_file() or file_hash(file) != expected:
            raise UserError(
                f"{file} is missing or does not have the hash that {path.name} lists: fetch or "
                "install it again."
            )


def _leaves(config: T5Config, embedding: str) -> list[_Leaf]:
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
    leaves = [_Leaf((*p.split("/"),), (key,), s, s, False, False) for p, key, s in single]
    for path, name, file_shape, shape in layer:
        keys = tuple(f"encoder.block.{i}.layer.{name}.weight" for i in range(c.num_layers))
        full_path = ("blocks", *path.split("/"))
        leaves.append(_Leaf(full_path, keys, file_shape, shape, True, len(file_shape) == 2))
    return leaves


def _put(tree: Params, path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _get(tree: Params, path: tuple[str, ...]) -> np.ndarray:
    for name in path:
        tree = tree[name]
    return tree
