"""The encoder of T5 v1.0 and v1.1 in Linen.

Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1, and the released checkpoints: RMS norm
before each sub-layer, attention without 1/sqrt(d) scaling, one table of relative position biases
shared by all layers, no biases in linear layers, no dropout (the encoder is frozen).

All layers are equal, so their parameters are stored stacked on a leading axis (`blocks/...`) and
run as one scan: the 24 layers of XXL compile as fast as two.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.types import Array

FEED_FORWARD_KINDS = ("gated-gelu", "relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Shape of a T5 encoder; the defaults are those of Hugging Face's `T5Config`.

    Attributes:
      feed_forward: "gated-gelu" (v1.1) or "relu" (v1.0).
      num_buckets, max_distance: of the relative positions; half of the buckets are for each
        direction.
      dtype: compute dtype of the matrix products, "float32" or "bfloat16". The residual stream,
        norms and softmax are always float32. Never float16: activations of real T5s exceed 65504.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    feed_forward: str = "relu"
    dtype: str = "float32"


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of key position minus query position.

    Half of the buckets are for keys after the query. Of each half, one half are single distances;
    the others grow logarithmically up to `max_distance`. Greater distances share the last bucket.

    Returns:
      `[length, length]` int32 (query, key) with values in [0, num_buckets).
    """
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    side = num_buckets // 2
    exact = side // 2
    distance = np.abs(offset)
    # In float32 like the reference implementations, so that distances on the edge of a bucket round
    # alike.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = ratio / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    far = np.minimum(exact + far.astype(np.int32), side - 1)
    bucket = np.where(distance < exact, distance, far) + np.where(offset > 0, side, 0)
    return bucket.astype(np.int32)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32, without mean and bias."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return x * scale.astype(jnp.float32)[None, None, :]


class Attention(nn.Module):
    """Self-attention over valid tokens with an additive position bias and no scaling."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Array, bias: Array, mask: Array) -> Array:
        """x `[B, L, D]`, bias `[H, L, L]` f32, mask `[B, L]` bool; returns f32 `[B, L, D]`."""
        c = self.config
        heads = (c.num_heads, c.d_kv)
        # The initial queries are smaller by 1/sqrt(d), which the scores lack.
        query = _linear(heads, -1, (c.d_model * c.d_kv) ** -0.5, c.dtype, "query")(x)
        key = _linear(heads, -1, c.d_model**-0.5, c.dtype, "key")(x)
        value = _linear(heads, -1, c.d_model**-0.5, c.dtype, "value")(x)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores + bias[None]
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        out = _linear(c.d_model, (-2, -1), (c.num_heads * c.d_kv) ** -0.5, c.dtype, "out")(out)
        return out.astype(jnp.float32)


class FeedForward(nn.Module):
    """Gated GELU (tanh approximation; v1.1) or ReLU (v1.0)."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x `[B, L, D]`; returns f32 `[B, L, D]`."""
        c = self.config
        if c.feed_forward == "gated-gelu":
            gate = _linear(c.d_ff, -1, c.d_model**-0.5, c.dtype, "gate")(x)
            up = _linear(c.d_ff, -1, c.d_model**-0.5, c.dtype, "up")(x)
            hidden = jax.nn.gelu(gate, approximate=True) * up
        else:
            hidden = jax.nn.relu(_linear(c.d_ff, -1, c.d_model**-0.5, c.dtype, "up")(x))
        return _linear(c.d_model, -1, c.d_ff**-0.5, c.dtype, "down")(hidden).astype(jnp.float32)


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Array, bias: Array, mask: Array) -> tuple[Array, None]:
        c = self.config
        hidden = RMSNorm(c.eps, name="attention_norm")(x).astype(c.dtype)
        x = x + Attention(c, name="attention")(hidden, bias, mask)
        hidden = RMSNorm(c.eps, name="feed_forward_norm")(x).astype(c.dtype)
        x = x + FeedForward(c, name="feed_forward")(hidden)
        return x, None


class T5Encoder(nn.Module):
    """Token ids to hidden states."""

    config: T5Config

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """Encodes.

        Args:
          ids: `[B, L]` int32. An id outside the vocabulary gives NaN.
          mask: `[B, L]` bool, True where a token is valid.

        Returns:
          `[B, L, D]` float32 states after the final norm; those of padding are meaningless.
        """
        c = self.config
        table = self.param(
            "embedding", nn.initializers.normal(1.0), (c.vocab_size, c.d_model), jnp.float32
        )
        # Differs from T5, whose table starts near zero. With std 1 even an untrained encoder
        # distinguishes word orders. Loaded checkpoints are not affected.
        relative_bias = self.param(
            "relative_bias", nn.initializers.normal(1.0), (c.num_buckets, c.num_heads), jnp.float32
        )
        buckets = relative_buckets(ids.shape[1], c.num_buckets, c.max_distance)
        bias = jnp.transpose(relative_bias.astype(jnp.float32)[buckets], (2, 0, 1))
        x = jnp.take(table, ids, axis=0).astype(jnp.float32)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
        )
        x, _ = blocks(c, name="blocks")(x, bias, mask)
        return RMSNorm(c.eps, name="final_norm")(x)


def _linear(
    features: int | tuple[int, ...], axis: int | tuple[int, ...], std: float, dtype: str, name: str
) -> nn.DenseGeneral:
    return nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=False,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=nn.initializers.normal(std),
        name=name,
    )
