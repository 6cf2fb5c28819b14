"""Convolutions, group norm, resampling, the residual block, and how stacked blocks are run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from imagen_jax.models.batch_axis import Conv, Dense, shard_over_batch
from imagen_jax.models.initialization import fan_in_std, scaled_fan_in_std
from imagen_jax.types import Array

NORM_EPS = 1e-5
FLOAT32 = jnp.dtype(jnp.float32)
RSQRT2 = 1.0 / math.sqrt(2.0)
# Where the log of the variance of the network's error starts, see `InputMix`.
LOG_VARIANCE = 2.0 * math.log(0.5)


# Name of the activations that `model.remat` "convs" keeps for the backward pass.
SAVED_BY_CONVS = "saved by remat=convs"
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "convs": jax.checkpoint_policies.save_only_these_names(SAVED_BY_CONVS),
}


def save_for_backward(x: Array) -> Array:
    """Marks the result of a convolution or of attention, which is expensive to recompute."""
    return checkpoint_name(x, SAVED_BY_CONVS)


def conv3x3(
    features: int, dtype: jnp.dtype, name: str, *, stride: int = 1, zero: bool = False
) -> Conv:
    """A 3x3 convolution with `SAME` padding; `zero` initialises its kernel with zeros."""
    init = nn.initializers.zeros if zero else fan_in_std
    return Conv(
        features, (3, 3), strides=(stride, stride), dtype=dtype, kernel_init=init, name=name
    )


def dense(
    features: int,
    dtype: jnp.dtype,
    name: str,
    *,
    zero: bool = False,
    gain: float = 1.0,
    bias: bool = True,
) -> Dense:
    """A linear map of the last axis; its kernel starts at zero or at `gain` / sqrt(fan in)."""
    init = nn.initializers.zeros if zero else scaled_fan_in_std(gain)
    return Dense(features, dtype=dtype, kernel_init=init, use_bias=bias, name=name)


def num_groups(channels: int) -> int:
    """Groups of a norm: min(32, C / 4), or the next smaller number that divides C."""
    groups = max(1, min(32, channels // 4))
    while channels % groups:
        groups -= 1
    return groups


class GroupNorm(nn.Module):
    """Group norm with float32 statistics, optionally modulated: y (1 + scale) + shift.

    The statistics are per-channel means followed by a small `[B, G]` mean. Normalisation, affine
    map and modulation are one multiply-add per activation. So activations are not reshaped to five
    axes, which breaks their tiling on TPU and costs time on CPU.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, modulation: tuple[Array, Array] | None = None) -> Array:
        """Normalises `x` `[B, H, W, C]`; `modulation` is scale and shift `[B, C]`."""
        b, _, _, c = x.shape
        gamma = self.param("scale", nn.initializers.ones, (c,), jnp.float32)[None]
        beta = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)[None]
        if modulation is not None:
            scale, shift = (m.astype(jnp.float32) for m in modulation)
            gamma, beta = gamma * (1.0 + scale), beta * (1.0 + scale) + shift

        def over_group(channel_means: Array) -> Array:  # [B, C] -> [B, C]
            grouped = channel_means.reshape(b, num_groups(c), -1)
            means = jnp.mean(grouped, axis=-1, keepdims=True)
            return jnp.broadcast_to(means, grouped.shape).reshape(b, c)

        x32 = x.astype(jnp.float32)
        mean = over_group(jnp.mean(x32, axis=(1, 2)))
        square = over_group(jnp.mean(x32 * x32, axis=(1, 2)))
        variance = jnp.maximum(square - mean * mean, 0.0)
        gain = jax.lax.rsqrt(variance + NORM_EPS) * gamma
        offset = beta - mean * gain
        return (x32 * gain[:, None, None, :] + offset[:, None, None, :]).astype(self.dtype)


def upsample_nearest(x: Array) -> Array:
    """`[B, H, W, C]` to `[B, 2H, 2W, C]`; broadcast and reshape, because resize emits gathers."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def fold_patches(x: Array, size: int) -> Array:
    """`[B, H, W, C]` to `[B, H / size, W / size, size * size * C]`: each patch becomes a pixel."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, h // size, w // size, size * size * c)


def unfold_patches(x: Array, size: int) -> Array:
    """The inverse of `fold_patches`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, size, size, c // size**2).swapaxes(2, 3)
    return x.reshape(b, h * size, w * size, c // size**2)


def downsample_mean(x: Array) -> Array:
    """`[B, H, W, C]` to `[B, H / 2, W / 2, C]` by 2x2 means."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4), dtype=jnp.float32).astype(
        x.dtype
    )


_RESAMPLE = {"none": lambda x: x, "down": downsample_mean, "up": upsample_nearest}


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; the identity without a key or with rate 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class InputMix(nn.Module):
    """Mixes the network's x_hat with z / alpha, which at high log-SNRs is nearer to x.

    Two estimates of x with independent errors of the variances s^2 (the network's) and e^-logsnr
    (that of z / alpha) are best mixed with the share g = s^2 / (s^2 + e^-logsnr) of the second,
    which is sigmoid(logsnr + log s^2). log s^2 is learned, depends on the noise levels and the
    text, and starts at `LOG_VARIANCE` (the skip of Karras et al. 2022, sigma_data = 0.5). So the
    output keeps what z shows, and needs no detail from the network.

    The low-resolution picture is first added to x_hat, with a learned gain that starts at zero.
    Differs from Imagen, which has no such skip.
    """

    @nn.compact
    def __call__(self, output: Array, inputs: Array, embedding: Array, logsnr: Array) -> Array:
        """`output` `[B, H, W, C]` f32, `inputs` `[B, H, W, n C]`, `embedding` `[B, E]` f32.

        `logsnr` is `[B]`.
        """
        b, height, width, channels = output.shape
        inputs = inputs.astype(jnp.float32).reshape(b, height, width, -1, channels)
        embedding = nn.swish(embedding)
        for number in range(1, inputs.shape[3]):
            gain = dense(1, FLOAT32, f"gain_{number}", zero=True)(embedding)
            output = output + gain[:, None, None, :] * inputs[:, :, :, number]
        log_variance = LOG_VARIANCE + dense(1, FLOAT32, "log_variance", zero=True)(embedding)[:, 0]
        share = jax.nn.sigmoid(logsnr + log_variance)
        # 1 / alpha = sqrt(1 + e^-logsnr); the share falls faster than that grows.
        from_z = share * jnp.sqrt(1.0 + jnp.exp(-logsnr))
        by_picture = (slice(None), None, None, None)
        return (1.0 - share)[by_picture] * output + from_z[by_picture] * inputs[:, :, :, 0]


class InputSkip(nn.Module):
    """Adds the input pictures of the network to its output, each with a learned gain.

    The gains `[B, 1 or 2]` depend on the noise levels and the text, and start at zero. Differs from
    Imagen, which has no such skip. Kept for weights that were trained with it: the gain that keeps
    what z shows needs an output that shrinks by as much, which `InputMix` gives for nothing.
    """

    @nn.compact
    def __call__(self, output: Array, inputs: Array, embedding: Array) -> Array:
        """`output` `[B, H, W, C]` f32, `inputs` `[B, H, W, n C]`, `embedding` `[B, E]` f32."""
        b, height, width, channels = output.shape
        inputs = inputs.astype(jnp.float32).reshape(b, height, width, -1, channels)
        gains = dense(inputs.shape[3], FLOAT32, "gains", zero=True)(nn.swish(embedding))
        return output + jnp.einsum("bhwnc,bn->bhwc", inputs, gains)


class ResBlock(nn.Module):
    """Residual block with scale-shift norm, after ADM (App. F.1) or Fig. A.27.

    norm, swish, [resample], conv, norm (modulated by the embedding), swish, dropout, conv.

    Attributes:
      width: output channels.
      dtype: compute dtype.
      dropout: rate before the second convolution.
      scaled: the block of the Efficient U-Net: sum (x + h) / sqrt(2) (App. B), and a 1x1
        convolution always lies on the shortcut, as Fig. A.27 draws it. Its kernel starts sqrt(2)
        larger than usual, because h starts at zero: so the block keeps the variance. Otherwise
        ADM's: plain sum and a 1x1 only where the width changes.
      resample: "none", "down" (2x2 mean) or "up" (nearest), on both branches (ADM "biggan").
    """

    width: int
    dtype: jnp.dtype
    dropout: float = 0.0
    scaled: bool = False
    resample: str = "none"

    @nn.compact
    def __call__(self, x: Array, embedding: Array, key: Array | None = None) -> Array:
        """`x` `[B, H, W, C]`, `embedding` `[B, E]` f32, dropout key to `[B, H', W', width]`."""
        resample = _RESAMPLE[self.resample]
        h = resample(nn.swish(GroupNorm(self.dtype, name="norm_1")(x)))
        h = save_for_backward(conv3x3(self.width, self.dtype, "conv_1")(h))
        modulation = dense(2 * self.width, self.dtype, "embedding")(nn.swish(embedding))
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = nn.swish(GroupNorm(self.dtype, name="norm_2")(h, (scale, shift)))
        h = dropout(h, self.dropout, key)
        # Zero-initialised as in ADM. Differs from Imagen, which says nothing about the start, in
        # the Efficient U-Net.
        h = save_for_backward(conv3x3(self.width, self.dtype, "conv_2", zero=True)(h))
        x = resample(x)
        if self.scaled or x.shape[-1] != self.width:
            gain = math.sqrt(2.0) if self.scaled else 1.0
            x = save_for_backward(dense(self.width, self.dtype, "shortcut", gain=gain)(x))
        return shard_over_batch((x + h) * RSQRT2 if self.scaled else x + h)


def fold(key: Array | None, index: int | Array) -> Array | None:
    """`jax.random.fold_in`; None, a missing dropout key, stays None."""
    return None if key is None else jax.random.fold_in(key, index)


def unstack(tree: Any, count: int) -> list[Any]:
    """Splits the leading axis of all leaves; its gradient is one concatenation per leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    parts = [[x[0] for x in jax.lax.split(leaf, (1,) * count, axis=0)] for leaf in leaves]
    return [treedef.unflatten([part[i] for part in parts]) for i in range(count)]


def run_stacked(
    parent: nn.Module,
    name: str,
    body: Callable[[Any, Array, Any, Any], Array],
    init: Callable[[Array], Any],
    h: Array,
    inputs: list[Any],
    *,
    scan: bool,
    remat: str,
) -> tuple[Array, list[Array]]:
    """Runs `len(inputs)` equal blocks whose parameters are stacked under `parent/name`.

    They are scanned, or unrolled in Python over the same parameters. (Unrolling inside `lax.scan`
    would still stack every residual of the backward pass.) On a CPU the gradients of convolutions
    are ten times slower inside a loop, so train unrolled there.

    Args:
      parent: the compact module that owns the parameters.
      name: of the stacked parameters.
      body: `(params of one block, h, index, input) -> h`.
      init: `key -> params of one block`.
      h: the input of the first block.
      inputs: a further input of each block, all of one structure.
      scan: scan instead of unrolling.
      remat: see `NetworkConfig.remat_of`; applied to each block separately.

    Returns:
      The output of the last block and the list of all outputs.
    """
    count = len(inputs)
    if parent.has_variable("params", name):
        params = parent.get_variable("params", name)
    else:
        params = parent.param(name, lambda key: jax.vmap(init)(jax.random.split(key, count)))
    if not scan:
        if remat != "none":
            body = jax.checkpoint(body, policy=POLICIES[remat], static_argnums=(2,))
        outputs = []
        for index, (block_params, block_input) in enumerate(
            zip(unstack(params, count), inputs, strict=True)
        ):
            h = body(block_params, h, index, block_input)
            outputs.append(h)
        return h, outputs

    def step(h: Array, xs: tuple[Any, Array, Any]) -> tuple[Array, Array]:
        h = body(xs[0], h, xs[1], xs[2])
        return h, h

    if remat != "none":
        # The loop itself keeps XLA from undoing the rematerialisation, so no barriers are needed.
        step = jax.checkpoint(step, policy=POLICIES[remat], prevent_cse=False)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs)
    h, outputs = jax.lax.scan(step, h, (params, jnp.arange(count), stacked))
    return h, unstack(outputs, count)
