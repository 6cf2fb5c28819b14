"""Text features for the U-Net, computed once per text and not once per sampling step."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.attention import attention
from imagen_jax.models.batch_axis import shard_over_batch
from imagen_jax.models.initialization import fan_in_std, fan_in_std_stacked
from imagen_jax.models.layers import FLOAT32, NORM_EPS, dense
from imagen_jax.types import Array, TextCond

POOL_HEAD_DIM = 64


@dataclasses.dataclass(frozen=True)
class TextLayer:
    """A group of attention layers that see the text.

    Attributes:
      name: of the group, such as "down_1_blocks".
      width: sum of the widths of the heads.
      head_dim: channels per head.
      count: layers whose parameters are stacked; 0 for a single layer without stacking.
      key_bias: whether the keys have a bias.
    """

    name: str
    width: int
    head_dim: int
    count: int = 0
    key_bias: bool = True


@flax.struct.dataclass
class TextFeatures:
    """Projected text.

    Attributes:
      pooled: `[B, E]` f32, added to the time embedding.
      keys: by name of the `TextLayer`: `[B, L, N, D]`, or `[count, B, L, N, D]` if stacked.
      values: like `keys`.
      mask: `[B, L]` bool, True where a token is valid.
    """

    pooled: Array
    keys: dict[str, Array]
    values: dict[str, Array]
    mask: Array


class _Heads(nn.Module):
    """A linear map of `[B, L, D]` to heads, for one layer or for `layer.count` stacked ones."""

    layer: TextLayer
    dtype: jnp.dtype
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = self.layer
        stack = (layer.count,) if layer.count else ()
        init = fan_in_std_stacked if stack else fan_in_std
        kernel = self.param("kernel", init, (*stack, x.shape[-1], layer.width), jnp.float32)
        n = "n" if stack else ""
        x = shard_over_batch(x)
        h = jnp.einsum(f"bld,{n}df->{n}blf", x, kernel.astype(self.dtype))
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (*stack, layer.width), jnp.float32)
            h = h + bias.astype(self.dtype)[..., None, None, :]
        h = h.reshape(*h.shape[:-1], layer.width // layer.head_dim, layer.head_dim)
        return shard_over_batch(h, axis=len(stack))


class _KeysValues(nn.Module):
    """Text keys and values of one `TextLayer`."""

    layer: TextLayer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        key = _Heads(self.layer, self.dtype, bias=self.layer.key_bias, name="key")(x)
        return key, _Heads(self.layer, self.dtype, name="value")(x)


class AttentionPool(nn.Module):
    """Attention pooling of a token sequence: the mean token attends over itself and all tokens.

    The paper gives only the name of the method (`feature_pooling_type "attention"`).
    """

    width: int
    key_bias: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """`x` `[B, L, D]` (0 where `mask` `[B, L]` is False) to `[B, width]` f32."""
        b = x.shape[0]
        head_dim = POOL_HEAD_DIM if self.width % POOL_HEAD_DIM == 0 else self.width
        count = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1.0)
        mean = jnp.sum(x * mask[..., None].astype(x.dtype), axis=1) / count[:, None]
        x = shard_over_batch(jnp.concatenate([mean[:, None], x], axis=1))
        mask = jnp.concatenate([jnp.ones((b, 1), bool), mask], axis=1)

        def project(x: Array, name: str, bias: bool = True) -> Array:
            h = dense(self.width, FLOAT32, name, bias=bias)(x)
            return h.reshape(b, -1, self.width // head_dim, head_dim)

        q, v = project(mean[:, None], "query"), project(x, "value")
        k = project(x, "key", self.key_bias)
        h = shard_over_batch(attention(q, k, v, mask).reshape(b, self.width))
        return dense(self.width, FLOAT32, "out")(h)


class TextProjection(nn.Module):
    """LayerNorm (section 2.5: "helps considerably"), keys and values of all layers, pooled text.

    One LayerNorm serves the keys and values of all layers: the linear map of a layer absorbs its
    own scale and bias. The pooled vector is not normalised afterwards, because the null text is all
    zeros, where a norm is almost discontinuous.
    """

    layers: tuple[TextLayer, ...]
    embed_dim: int
    dtype: jnp.dtype
    shared_key_bias: bool = False

    @nn.compact
    def __call__(self, text: TextCond) -> TextFeatures:
        # Replaced first, so that not even NaN in a padded row has an influence.
        tokens = jnp.where(text.mask[..., None], text.tokens.astype(jnp.float32), 0.0)
        pool_tokens = nn.LayerNorm(epsilon=NORM_EPS, name="pool_norm")(tokens)
        pooled = AttentionPool(self.embed_dim, self.shared_key_bias, name="pool")(
            pool_tokens, text.mask
        )
        keys, values = {}, {}
        if self.layers:
            tokens = nn.LayerNorm(epsilon=NORM_EPS, name="norm")(tokens).astype(self.dtype)
        for layer in self.layers:
            project = _KeysValues(layer, self.dtype, name=layer.name)
            keys[layer.name], values[layer.name] = project(tokens)
        return TextFeatures(pooled=pooled, keys=keys, values=values, mask=text.mask)
