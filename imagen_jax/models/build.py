"""Builds a stage's network and applies it: all that training and sampling need of this package."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.config import ModelConfig, level_stride, total_stride
from imagen_jax.errors import UserError
from imagen_jax.models import efficient_unet, unet
from imagen_jax.models.initialization import draw_kernels
from imagen_jax.models.layers import fold_patches, unfold_patches
from imagen_jax.models.text_projection import TextFeatures, TextProjection
from imagen_jax.types import Array, Params, TextCond

# Attention keeps a number for each pair of pixels and head, in float32. Beyond this much for a
# single picture (64x64 pixels with 8 heads take 0.5 GiB) no device trains it.
MAX_ATTENTION_BYTES = 2 * 2**30


def build_model(
    config: ModelConfig, *, resolution: int, low_res: bool, text_dim: int
) -> unet.UNet | efficient_unet.EfficientUNet:
    """The network of one stage. It has no parameters yet: see `init_params`.

    Args:
      config: the network.
      resolution: side of the picture that the stage draws. The network is fully convolutional and
        runs at every multiple of `total_stride(config)`.
      low_res: whether it is conditioned on a low-resolution picture and an aug_level.
      text_dim: D of the text encoder's embeddings.

    Raises:
      UserError: the configuration contradicts itself or does not fit the resolution.
    """
    _validate(config, resolution, text_dim)
    network = {"unet": unet.UNet, "efficient_unet": efficient_unet.EfficientUNet}[config.kind]
    return network(config, resolution=resolution, low_res=low_res, text_dim=text_dim)


def _text_projection(model: nn.Module) -> TextProjection:
    config = model.config
    family = unet if config.kind == "unet" else efficient_unet
    embed_dim = config.embed_dim or 4 * config.channels[0]
    return TextProjection(
        family.text_layers(config), embed_dim=embed_dim, dtype=jnp.dtype(config.dtype)
    )


def init_params(model: nn.Module, key: Array) -> Params:
    """Draws the parameters, all float32, from a typed key.

    Traced with one picture of the smallest size; works under `jax.eval_shape` and inside `jax.jit`.
    The text projections lie under "text", the rest under the names of the network's layers.
    """

    def draw(key: Array) -> Params:
        text = TextCond(tokens=jnp.zeros((1, 2, model.text_dim)), mask=jnp.ones((1, 2), bool))
        features, text_variables = _text_projection(model).init_with_output(key, text)
        side = total_stride(model.config)
        image = fold_patches(jnp.zeros((1, side, side, 3)), model.config.patch_size)
        level = jnp.zeros((1,))
        low_res, aug_level = (image, level) if model.low_res else (None, None)
        variables = model.init(key, image, level, features, low_res, aug_level)
        stds = {**variables["params"], "text": text_variables["params"]}
        return draw_kernels(stds, key)

    # Jitted, so that the forward pass that finds the shapes is dropped as dead code.
    return jax.jit(draw)(key)


def project_text(model: nn.Module, params: Params, text: TextCond) -> TextFeatures:
    """Keys, values and pooled vector of a text: once per text, not once per sampling step.

    Args:
      model: from `build_model`.
      params: from `init_params`; only `params["text"]` is read.
      text: tokens `[B, L, text_dim]`, mask `[B, L]`. Tokens where the mask is False have no
        influence, whatever they hold.

    Raises:
      UserError: the tokens are not of the width that the model was built for.
    """
    if text.tokens.shape[-1] != model.text_dim:
        raise UserError(
            f"text embeddings are {text.tokens.shape[-1]} wide, the model was built for "
            f"{model.text_dim}: use the text encoder that it was trained with"
        )
    return _text_projection(model).apply({"params": params["text"]}, text)


def apply_model(
    model: nn.Module,
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
      model: from `build_model`.
      params: from `init_params`.
      z: `[B, H, W, 3]` noisy picture.
      logsnr: `[B]`, its log-SNR, clipped to +-20.
      features: from `project_text`, batch size B.
      low_res: `[B, H, W, 3]` low-resolution condition, noised and up-sampled to the size of `z`;
        if and only if the model has one.
      aug_level: `[B]` in [0, 1], the noise level of `low_res`; if and only if the model has one.
      dropout_key: typed key; None, when sampling, turns dropout off.

    Returns:
      `[B, H, W, 3]` f32.

    Raises:
      UserError: H or W is not a multiple of the total stride, or a condition is missing or
        superfluous.
    """
    stride = total_stride(model.config)
    _, height, width, _ = z.shape
    if height % stride or width % stride:
        raise UserError(
            f"a picture of {height}x{width} does not fit a network of total stride {stride}: use "
            f"a multiple of {stride}"
        )
    for name, value in (("low_res", low_res), ("aug_level", aug_level)):
        if (value is not None) != model.low_res:
            what = "needs" if model.low_res else "takes no"
            raise UserError(f"this model {what} {name}: it was built with low_res={model.low_res}")
    if low_res is not None and low_res.shape != z.shape:
        raise UserError(f"low_res is {low_res.shape}, z is {z.shape}: up-sample it to z first")
    network_params = {name: value for name, value in params.items() if name != "text"}
    patch = model.config.patch_size
    prediction = model.apply(
        {"params": network_params},
        fold_patches(z, patch),
        logsnr,
        features,
        None if low_res is None else fold_patches(low_res, patch),
        aug_level,
        dropout_key,
    )
    return unfold_patches(prediction, patch)


def _validate(config: ModelConfig, resolution: int, text_dim: int) -> None:
    levels = len(config.channels)
    if config.kind not in ("unet", "efficient_unet"):
        raise UserError(f"model.kind={config.kind!r} must be unet or efficient_unet")
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype={config.dtype!r} must be float32 or bfloat16")
    per_level = ["num_res_blocks", "self_attention", "text_attention"]
    per_level += ["strides"] if config.kind == "efficient_unet" else []
    for field in per_level:
        value = getattr(config, field)
        if len(value) != levels:
            raise UserError(
                f"model.{field}={value} has {len(value)} entries, model.channels="
                f"{config.channels} has {levels}: give one entry per level"
            )
    if not levels or min(config.channels) < 1:
        raise UserError(f"model.channels={config.channels} must be one positive width per level")
    if config.channels[0] % 2 or config.channels[0] < 4:
        raise UserError(f"model.channels={config.channels}: the first must be even and at least 4")
    if min(config.num_res_blocks) < 1:
        raise UserError(f"model.num_res_blocks={config.num_res_blocks} must be at least 1 each")
    if config.kind == "efficient_unet" and not set(config.strides) <= {1, 2}:
        raise UserError(f"model.strides={config.strides} must be 1 or 2 each")
    for field in ("head_dim", "attention_expansion", "patch_size"):
        if getattr(config, field) < 1:
            raise UserError(f"model.{field}={getattr(config, field)} must be at least 1")
    for field in ("stem_channels", "embed_dim"):
        if getattr(config, field) < 0:
            raise UserError(f"model.{field}={getattr(config, field)} must not be negative")
    if text_dim < 1:
        raise UserError(f"text_dim={text_dim} must be at least 1")
    for i, kind in enumerate(config.text_attention):
        if kind not in ("none", "joint", "cross"):
            raise UserError(f"model.text_attention[{i}]={kind!r} must be none, joint or cross")
        if kind == "joint" and not config.self_attention[i]:
            raise UserError(
                f"model.text_attention[{i}]='joint' needs model.self_attention[{i}]=True; "
                f"without self-attention use 'cross'"
            )
        middle = config.kind == "unet" and i == levels - 1
        width = config.attention_expansion * config.channels[i]
        attends = config.self_attention[i] or kind != "none" or middle
        if attends and width % config.head_dim:
            raise UserError(
                f"level {i} attends with a width of {width} (model.channels[{i}]="
                f"{config.channels[i]} times model.attention_expansion), which model.head_dim="
                f"{config.head_dim} does not divide: use a head_dim that divides it"
            )
        side = resolution // level_stride(config, i)
        size = 4 * (width // config.head_dim) * side**4
        if (config.self_attention[i] or middle) and size > MAX_ATTENTION_BYTES:
            raise UserError(
                f"level {i} would attend over {side}x{side} pixels: {size / 2**30:.1f} GiB of "
                f"attention weights for one picture. Set model.self_attention[{i}]=False (and "
                f"text_attention to 'cross' or 'none'), or attend at a lower level"
            )
    stride = total_stride(config)
    if resolution < 1 or resolution % stride:
        raise UserError(
            f"resolution {resolution} is not a multiple of the model's total stride {stride}: "
            f"change the resolution or the number of levels"
        )
