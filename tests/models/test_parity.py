"""Blocks against diffusers' torch modules with the same random weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.attention import ImageAttention
from imagen_jax.models.layers import ResBlock

BATCH, SIDE = 2, 6
# float32 sums of a few hundred terms of size 1, added in another order.
TOLERANCE = 2e-5


def to_torch(x: np.ndarray):
    """`[B, H, W, C]` to torch's `[B, C, H, W]`."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def randomize(module, seed: int) -> dict[str, np.ndarray]:
    """Draws all weights of a torch module, norms too, and returns them."""
    import torch

    rng = np.random.default_rng(seed)
    for name, value in module.state_dict().items():
        fan_in = max(1, math.prod(value.shape[1:]))
        drawn = rng.normal(size=tuple(value.shape)) / math.sqrt(fan_in)
        value.copy_(torch.from_numpy(drawn + ("norm" in name and name.endswith("weight"))))
    return {name: value.numpy() for name, value in module.state_dict().items()}


def norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def linear(weights, name):
    kernel = weights[f"{name}.weight"]
    # Convolutions [out, in, h, w] to [h, w, in, out]; 1x1 ones and dense layers to [in, out].
    kernel = kernel.transpose(2, 3, 1, 0).squeeze() if kernel.ndim == 4 else kernel.T
    return {"kernel": kernel, "bias": weights[f"{name}.bias"]}


@pytest.mark.parity
@pytest.mark.parametrize("scaled, resample", [(True, "none"), (False, "none"), (False, "up")])
@pytest.mark.parametrize("width", [16, 32])
def test_residual_block(scaled, resample, width):
    import torch
    from diffusers.models.resnet import ResnetBlock2D

    channels, embed_dim = 16, 24
    has_shortcut = scaled or width != channels
    theirs = ResnetBlock2D(
        in_channels=channels,
        out_channels=width,
        temb_channels=embed_dim,
        groups=channels // 4,
        groups_out=width // 4,
        eps=1e-5,
        non_linearity="silu",
        time_embedding_norm="scale_shift",
        output_scale_factor=math.sqrt(2) if scaled else 1.0,
        use_in_shortcut=has_shortcut,
        up=resample == "up",
    ).eval()
    weights = randomize(theirs, seed=width)
    params = {
        "norm_1": norm(weights, "norm1"),
        "conv_1": linear(weights, "conv1"),
        "embedding": linear(weights, "time_emb_proj"),
        "norm_2": norm(weights, "norm2"),
        "conv_2": linear(weights, "conv2"),
    }
    if has_shortcut:
        params["shortcut"] = linear(weights, "conv_shortcut")
    ours = ResBlock(width, jnp.dtype(jnp.float32), scaled=scaled, resample=resample)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, SIDE, SIDE, channels)).astype(np.float32)
    embedding = rng.normal(size=(BATCH, embed_dim)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(to_torch(x), torch.from_numpy(embedding)).numpy().transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        actual = ours.apply({"params": params}, x, embedding)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parity
def test_self_attention_with_text_keys_and_values():
    import torch
    from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor

    channels, head_dim, text_dim, length = 32, 8, 12, 5
    num_heads = channels // head_dim
    theirs = Attention(
        query_dim=channels,
        added_kv_proj_dim=text_dim,
        heads=num_heads,
        dim_head=head_dim,
        bias=True,
        norm_num_groups=channels // 4,
        eps=1e-5,
        residual_connection=True,
        upcast_softmax=True,
        processor=AttnAddedKVProcessor(),
    ).eval()
    weights = randomize(theirs, seed=1)
    params = {
        "norm": norm(weights, "group_norm"),
        "query": linear(weights, "to_q"),
        "key": linear(weights, "to_k"),
        "value": linear(weights, "to_v"),
        "out": linear(weights, "to_out.0"),
    }
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, SIDE, SIDE, channels)).astype(np.float32)
    tokens = rng.normal(size=(BATCH, length, text_dim)).astype(np.float32)

    def project(name: str) -> np.ndarray:
        layer = linear(weights, name)
        projected = tokens @ layer["kernel"] + layer["bias"]
        return projected.reshape(BATCH, length, num_heads, head_dim)

    # Two padded tokens with wild keys, which the mask must hide.
    text = [
        np.concatenate([project(name), np.full((BATCH, 2, num_heads, head_dim), 50.0)], axis=1)
        for name in ("add_k_proj", "add_v_proj")
    ]
    mask = np.broadcast_to(np.arange(length + 2) < length, (BATCH, length + 2))
    ours = ImageAttention(
        channels, head_dim, see_image=True, key_bias=True, dtype=jnp.dtype(jnp.float32)
    )
    with torch.no_grad():
        expected = theirs(to_torch(x), encoder_hidden_states=torch.from_numpy(tokens)).numpy()
    expected = expected.transpose(0, 2, 3, 1)
    text = [jnp.asarray(part, jnp.float32) for part in text]
    with jax.default_matmul_precision("highest"):
        actual = ours.apply({"params": params}, x, (*text, jnp.asarray(mask)))
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE * np.abs(expected).max())
