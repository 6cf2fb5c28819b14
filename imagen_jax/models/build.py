"""Initialises a network and applies it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.errors import UserError
from imagen_jax.models.initialization import draw_kernels
from imagen_jax.models.layers import fold_patches, unfold_patches
from imagen_jax.models.text_projection import TextFeatures, TextProjection
from imagen_jax.types import Array, Params, TextCond


def _text_projection(network: nn.Module) -> TextProjection:
    config = network.config
    return TextProjection(
        config.text_layers(),
        embed_dim=config.embedding_width,
        dtype=jnp.dtype(config.dtype),
        shared_key_bias=config.shared_key_bias,
    )


def init_params(network: nn.Module, key: Array) -> Params:
    """Draws the parameters, all float32, from a typed key.

    Traced with one picture of the smallest size; works under `jax.eval_shape` and inside `jax.jit`.
    The text projections lie under "text", the rest under the names of the network's layers.
    """

    def draw(key: Array) -> Params:
        text = TextCond(tokens=jnp.zeros((1, 2, network.text_dim)), mask=jnp.ones((1, 2), bool))
        features, text_variables = _text_projection(network).init_with_output(key, text)
        side = network.config.total_stride
        image = fold_patches(jnp.zeros((1, side, side, 3)), network.config.patch_size)
        level = jnp.zeros((1,))
        low_res, aug_level = (image, level) if network.low_res else (None, None)
        variables = network.init(key, image, level, features, low_res, aug_level)
        stds = {**variables["params"], "text": text_variables["params"]}
        return draw_kernels(stds, key)

    # Jitted, so that the forward pass that finds the shapes is dropped as dead code.
    return jax.jit(draw)(key)


def project_text(network: nn.Module, params: Params, text: TextCond) -> TextFeatures:
    """Keys, values and pooled vector of a text: once per text, not once per sampling step.

    Args:
      network: from `NetworkConfig.make_network`.
      params: from `init_params`; only `params["text"]` is read.
      text: tokens `[B, L, text_dim]`, mask `[B, L]`. Tokens where the mask is False have no
        influence, whatever they hold.

    Raises:
      UserError: the tokens are not of the width that the network was built for.
    """
    if text.tokens.shape[-1] != network.text_dim:
        raise UserError(
            f"text embeddings are {text.tokens.shape[-1]} wide, the network was built for "
            f"{network.text_dim}: use the text encoder that it was trained with"
        )
    return _text_projection(network).apply({"params": params["text"]}, text)


def apply_network(
    network: nn.Module,
    params: Params,
    z: Array,
    logsnr: Array,
    features: TextFeatures,
    *,
    low_res: Array | None = None,
    aug_level: Array | None = None,
    dropout_key: Array | None = None,
) -> Array:
    """The network's prediction; which quantity it is (eps, v, x) the network does not know.

    Differs from Imagen where `patch_size` is not 1: the network then sees patches of pixels as
    channels, and what it calls full resolution is that of the patches.

    Args:
      network: from `NetworkConfig.make_network`.
      params: from `init_params`.
      z: `[B, H, W, 3]` noisy picture.
      logsnr: `[B]`, its log-SNR, clipped to +-20.
      features: from `project_text`, batch size B.
      low_res: `[B, H, W, 3]` low-resolution condition, noised and up-sampled to the size of `z`;
        if and only if the network has one.
      aug_level: `[B]` in [0, 1], the noise level of `low_res`; if and only if the network has one.
      dropout_key: typed key; None, when sampling, turns dropout off.

    Returns:
      `[B, H, W, 3]` f32.

    Raises:
      UserError: H or W is not a multiple of the total stride, or a condition is missing or
        superfluous.
    """
    stride = network.config.total_stride
    _, height, width, _ = z.shape
    if height % stride or width % stride:
        raise UserError(
            f"a picture of {height}x{width} does not fit a network of total stride {stride}: use "
            f"a multiple of {stride}"
        )
    for name, value in (("low_res", low_res), ("aug_level", aug_level)):
        if (value is not None) != network.low_res:
            what = "needs" if network.low_res else "takes no"
            raise UserError(
                f"this network {what} {name}: it was made with low_res={network.low_res}"
            )
    if low_res is not None and low_res.shape != z.shape:
        raise UserError(f"low_res is {low_res.shape}, z is {z.shape}: up-sample it to z first")
    params_of_network = {name: value for name, value in params.items() if name != "text"}
    patch = network.config.patch_size
    prediction = network.apply(
        {"params": params_of_network},
        fold_patches(z, patch),
        logsnr,
        features,
        None if low_res is None else fold_patches(low_res, patch),
        aug_level,
        dropout_key,
    )
    return unfold_patches(prediction, patch)
