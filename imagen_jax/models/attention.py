"""Attention over pixels and text: one function and the layer that uses it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.batch_axis import shard_over_batch
from imagen_jax.models.layers import GroupNorm, dense, save_for_backward
from imagen_jax.types import Array

# Finite, so that a row without any valid key gives a mean of the values instead of NaN.
MASKED = -1e30


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Scaled dot-product attention with a float32 softmax.

    Args:
      q: `[B, Q, N, D]` queries of N heads.
      k: `[B, K, N, D]` keys.
      v: `[B, K, N, D]` values.
      mask: `[B, K]` bool, False for ignored keys; None uses all keys.

    Returns:
      `[B, Q, N, D]` in the dtype of `v`.
    """
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum("bqnd,bknd->bnqk", q * scale, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)


class ImageAttention(nn.Module):
    """Residual attention whose queries are the pixels.

    Attributes:
      width: sum of the widths of the heads (2 C in Fig. A.28 of the paper, C in the base).
      head_dim: channels per head; divides `width`.
      see_image: whether the pixels are keys too; otherwise only the text is (cross-attention).
      key_bias: whether the keys of the pixels have a bias.
      dtype: compute dtype.
    """

    width: int
    head_dim: int
    see_image: bool
    key_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, text: tuple[Array, Array, Array] | None) -> Array:
        """`x` `[B, H, W, C]` and text (keys, values `[B, L, N, D]`, mask `[B, L]`) to `x + h`.

        Text keys from `TextProjection`, which holds their weights, are appended to those of the
        pixels (section 2.5).
        """
        b, height, width, c = x.shape
        heads = (b, height * width, self.width // self.head_dim, self.head_dim)
        h = GroupNorm(self.dtype, name="norm")(x).reshape(b, height * width, c)

        def project(name: str, bias: bool = True) -> Array:
            return dense(self.width, self.dtype, name, bias=bias)(h).reshape(heads)

        q, k, v, mask = project("query"), None, None, None
        if self.see_image:
            k, v = project("key", self.key_bias), project("value")
        if text is not None:
            text_k, text_v, mask = text
            if self.see_image:
                k = jnp.concatenate([k, text_k], axis=1)
                v = jnp.concatenate([v, text_v], axis=1)
                pixels = jnp.ones((b, height * width), bool)
                mask = jnp.concatenate([pixels, mask], axis=1)
            else:
                k, v = text_k, text_v
        h = save_for_backward(attention(q, k, v, mask)).reshape(b, height * width, self.width)
        # Zero-initialised: the layer starts as the identity (ADM).
        h = dense(c, self.dtype, "out", zero=True)(h)
        # A plain sum in both networks: the 1 / sqrt(2) of App. B belongs to residual blocks.
        return shard_over_batch(x + h.reshape(x.shape))


def attend(
    x: Array,
    text: tuple[Array, Array, Array] | None,
    *,
    self_attention: bool,
    text_attention: str,
    expansion: int,
    head_dim: int,
    shared_key_bias: bool,
    dtype: jnp.dtype,
) -> Array:
    """Applies the attention layers of one place in the network; call it in a compact method.

    `text_attention` is "none", "joint" (with self-attention) or "cross" (a layer of its own, after
    the self-attention if there is one). `x` `[B, H, W, C]`, text as for `ImageAttention`.
    A bias that all keys share changes nothing: `shared_key_bias` keeps it where earlier versions
    had it. Beside the keys of the text those of the pixels need one.
    """
    layer = functools.partial(
        ImageAttention, width=expansion * x.shape[-1], head_dim=head_dim, dtype=dtype
    )
    joint = text_attention == "joint"
    if self_attention:
        key_bias = joint or shared_key_bias
        x = layer(see_image=True, key_bias=key_bias, name="attention")(x, text if joint else None)
    if text_attention == "cross":
        x = layer(see_image=False, key_bias=False, name="cross_attention")(x, text)
    return x
