"""The text tower of CLIP in Linen: the states of its penultimate layer, as Imagen uses them.

Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4, and the released checkpoints: learned
positions, causal attention, LayerNorm before each sub-layer. Imagen (section 4.4) compares T5 with
the penultimate layer, so the last layer and the final norm are neither run nor loaded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError, brief
from imagen_jax.text import hf_files
from imagen_jax.text.hf_files import Leaf, single_leaf, stacked_leaf
from imagen_jax.types import Array, Params

MODEL_TYPES = ("clip", "clip_text_model")
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
# Other tensors that a directory may hold beside those of the text tower.
_IGNORED = re.compile(
    r"vision_model\.|visual_projection\.|text_projection\.|logit_scale$|.*position_ids$|"
    r"(text_model\.)?final_layer_norm\."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Shape of a text tower; the defaults are those of Hugging Face's `CLIPTextConfig`.

    Attributes:
      num_layers: of the checkpoint; the last one is not run.
      max_positions: maximum number of tokens of a caption.
      activation: "quick_gelu" or "gelu".
      dtype: compute dtype of the matrix products, "float32" or "bfloat16"; the residual stream,
        norms and softmax are float32.
    """

    vocab_size: int = 49408
    d_model: int = 512
    d_ff: int = 2048
    num_layers: int = 12
    num_heads: int = 8
    max_positions: int = 77
    eps: float = 1e-5
    activation: str = "quick_gelu"
    dtype: str = "float32"


class ClipEncoder(nn.Module):
    """Token ids to hidden states."""

    config: ClipConfig

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """Encodes.

        Args:
          ids: `[B, L]` int32, from the start-of-text token on, L <= `max_positions`.
          mask: `[B, L]` bool, True where a token is valid.

        Returns:
          `[B, L, D]` float32 states of the penultimate layer; those of padding are meaningless.
        """
        c = self.config
        length = ids.shape[1]
        normal = nn.initializers.normal
        table = self.param("embedding", normal(0.02), (c.vocab_size, c.d_model), jnp.float32)
        shape = (c.max_positions, c.d_model)
        positions = self.param("positions", normal(0.01), shape, jnp.float32)
        x = jnp.take(table, ids, axis=0).astype(jnp.float32)
        x = x + positions[None, :length].astype(jnp.float32)
        visible = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None, :]
        blocks = nn.scan(
            ClipBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers - 1,
        )
        x, _ = blocks(c, name="blocks")(x, visible)
        return x


class ClipBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    config: ClipConfig

    @nn.compact
    def __call__(self, x: Array, visible: Array) -> tuple[Array, None]:
        """x `[B, L, D]` f32, visible `[B, L, L]` bool (query, key); returns f32 `[B, L, D]`."""
        c = self.config
        heads = (c.num_heads, c.d_model // c.num_heads)

        def dense(features: int | tuple[int, ...], axis: int | tuple[int, ...], name: str) -> Any:
            return nn.DenseGeneral(
                features, axis=axis, dtype=c.dtype, param_dtype=jnp.float32, name=name
            )

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=c.eps, dtype=jnp.float32, name=name)

        hidden = norm("attention_norm")(x).astype(c.dtype)
        query = dense(heads, -1, "query")(hidden) * heads[1] ** -0.5
        key, value = dense(heads, -1, "key")(hidden), dense(heads, -1, "value")(hidden)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        x = x + dense(c.d_model, (-2, -1), "out")(out).astype(jnp.float32)
        hidden = norm("feed_forward_norm")(x).astype(c.dtype)
        hidden = _ACTIVATIONS[c.activation](dense(c.d_ff, -1, "up")(hidden))
        return x + dense(c.d_model, -1, "down")(hidden).astype(jnp.float32), None


# --- Hugging Face directories -----------------------------------------------------------------


def read_config(values: dict[str, Any], path: Path, dtype: str) -> ClipConfig:
    """The ClipConfig of a `config.json` of a text tower or of a whole CLIP.

    Args:
      values: content of the file.
      path: of the file, for messages.
      dtype: of the matrix products.

    Raises:
      UserError: a size that no CLIP has, or an unknown activation.
    """
    if values["model_type"] == "clip":
        values = values.get("text_config") or {}
        if not isinstance(values, dict):
            raise UserError(f"{path} has text_config {brief(values)}: it must be an object.")
    names = {
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "eps": "layer_norm_eps",
        "activation": "hidden_act",
    }
    config = ClipConfig(dtype=dtype, **hf_files.read_fields(ClipConfig, names, values, path))
    if config.num_layers < 2:
        raise UserError(
            f"{path} has num_hidden_layers {config.num_layers}: the last but one is read, so there "
            "must be two at least."
        )
    if config.d_model % config.num_heads:
        raise UserError(
            f"{path} has hidden_size {config.d_model}, which num_attention_heads "
            f"{config.num_heads} does not divide."
        )
    if config.activation not in _ACTIVATIONS:
        raise UserError(
            f"{path} has hidden_act {brief(config.activation)}: only "
            f"{' and '.join(_ACTIVATIONS)} are supported."
        )
    return config


def abstract_params(config: ClipConfig, dtype: str) -> Params:
    """Shapes and dtypes of the parameters that `load_params` reads."""
    return hf_files.abstract_params(_leaves(config, ""), dtype)


def load_params(
    directory: Path, config: ClipConfig, dtype: str = "float32", shardings: Params | None = None
) -> Params:
    """Reads the parameters of the text tower; arguments and errors as of `t5_load.load_params`."""
    with hf_files.open_tensors(directory) as files:
        # transformers 5 writes a text tower alone without this part of the names.
        prefix = "text_model." if any(key.startswith("text_model.") for key in files) else ""
        leaves = _leaves(config, prefix)
        last = re.escape(f"{prefix}encoder.layers.{config.num_layers - 1}.")
        ignored = re.compile(f"{_IGNORED.pattern}|{last}")
        what = f"a CLIP text tower of {config.num_layers} layers"
        hf_files.check_tensors(directory, files, leaves, ignored, what)
        return hf_files.load_params(files, leaves, dtype, shardings)


def _leaves(config: ClipConfig, prefix: str) -> list[Leaf]:
    c = config
    heads = (c.num_heads, c.d_model // c.num_heads)
    square = (c.d_model, c.d_model)
    # (our path, name within the layer, shape in the file, our shape); matrices are transposed.
    layer: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]] = []
    for ours, theirs in (("attention_norm", "layer_norm1"), ("feed_forward_norm", "layer_norm2")):
        layer.append((f"{ours}/scale", f"{theirs}.weight", square[:1], square[:1]))
        layer.append((f"{ours}/bias", f"{theirs}.bias", square[:1], square[:1]))
    for ours in ("query", "key", "value"):
        theirs = f"self_attn.{ours[0]}_proj"
        layer.append((f"{ours}/kernel", f"{theirs}.weight", square, (c.d_model, *heads)))
        layer.append((f"{ours}/bias", f"{theirs}.bias", square[:1], heads))
    layer.append(("out/kernel", "self_attn.out_proj.weight", square, (*heads, c.d_model)))
    layer.append(("out/bias", "self_attn.out_proj.bias", square[:1], square[:1]))
    wide = (c.d_ff, c.d_model)
    layer.append(("up/kernel", "mlp.fc1.weight", wide, wide[::-1]))
    layer.append(("up/bias", "mlp.fc1.bias", wide[:1], wide[:1]))
    layer.append(("down/kernel", "mlp.fc2.weight", wide[::-1], wide))
    layer.append(("down/bias", "mlp.fc2.bias", square[:1], square[:1]))
    single = (
        ("embedding", "token_embedding", (c.vocab_size, c.d_model)),
        ("positions", "position_embedding", (c.max_positions, c.d_model)),
    )
    return [
        *(
            single_leaf(ours, f"{prefix}embeddings.{theirs}.weight", shape)
            for ours, theirs, shape in single
        ),
        *(
            stacked_leaf(
                f"blocks/{path}",
                [f"{prefix}encoder.layers.{i}.{name}" for i in range(c.num_layers - 1)],
                *shapes,
            )
            for path, name, *shapes in layer
        ),
    ]
