"""Norm, resampling, dropout, the residual block and the running of stacked blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagen_jax.models.layers import (
    GroupNorm,
    ResBlock,
    downsample_mean,
    dropout,
    fold_patches,
    num_groups,
    run_stacked,
    unfold_patches,
    unstack,
    upsample_nearest,
)

FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (8, 2), (64, 16), (128, 32), (512, 32), (6, 1), (136, 17)]
)
def test_number_of_groups(channels, groups):
    assert num_groups(channels) == groups  # min(32, C / 4); 136 channels cannot be 32 groups


def test_group_norm_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    x = 3.0 + 2.0 * rng.normal(size=(2, 4, 6, 16))
    gamma, beta = rng.normal(size=16), rng.normal(size=16)
    scale, shift = rng.normal(size=(2, 2, 16))
    expected = np.empty_like(x)
    for b in range(2):
        for group in range(4):
            part = x[b, ..., 4 * group : 4 * group + 4]
            expected[b, ..., 4 * group : 4 * group + 4] = (part - part.mean()) / np.sqrt(
                part.var() + 1e-5
            )
    expected = expected * gamma + beta
    expected = expected * (1 + scale[:, None, None]) + shift[:, None, None]
    params = {"scale": jnp.float32(gamma), "bias": jnp.float32(beta)}
    result = GroupNorm(FLOAT32).apply(
        {"params": params}, jnp.float32(x), (jnp.float32(scale), jnp.float32(shift))
    )
    np.testing.assert_allclose(result, expected, atol=2e-5)  # f32 sums over 96 values of size 10


def test_resampling_by_hand():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    up = upsample_nearest(x)
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    np.testing.assert_array_equal(up[0, ..., 0], expected)
    np.testing.assert_array_equal(downsample_mean(up), x)
    np.testing.assert_array_equal(downsample_mean(x).ravel(), [2.5])


def test_patches_by_hand_and_back():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    folded = fold_patches(x, 2)
    assert folded.shape == (2, 2, 3, 12)
    # Rows of the patch, then its columns, then channels: as numpy flattens the patch.
    np.testing.assert_array_equal(folded[1, 1, 2], np.asarray(x)[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(unfold_patches(folded, 2), x)
    np.testing.assert_array_equal(fold_patches(x, 1), x)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((100, 100))
    dropped = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(dropped)) == {np.float32(0.0), np.float32(1 / 0.75)}
    # The standard error of the mean of 10,000 is 0.006.
    assert abs(float(dropped.mean()) - 1.0) < 0.03
    assert dropout(x, 0.25, None) is x


def test_blocks_start_as_their_shortcut():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    embedding = jax.random.normal(jax.random.key(1), (2, 6))

    def run(block):
        params = block.init(jax.random.key(2), x, embedding)["params"]
        if "shortcut" in params:
            params["shortcut"]["kernel"] = jnp.diag(jnp.arange(8.0))
        return block.apply({"params": params}, x, embedding)

    np.testing.assert_array_equal(run(ResBlock(8, FLOAT32)), x)
    np.testing.assert_allclose(
        run(ResBlock(8, FLOAT32, scaled=True)), x * jnp.arange(8.0)[None, None, None] / 2**0.5,
        rtol=1e-6,
    )  # fmt: skip
    half = run(ResBlock(8, FLOAT32, resample="down"))
    np.testing.assert_array_equal(half, downsample_mean(x))
    np.testing.assert_array_equal(run(ResBlock(8, FLOAT32, resample="up")), upsample_nearest(x))


def test_unstack_has_the_gradient_of_indexing():
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(jnp.stack(unstack({"a": x}, 3)[1]["a"][None]), x[1:2])
    grad = jax.grad(lambda x: 5.0 * unstack(x, 3)[2].sum())(x)
    np.testing.assert_array_equal(grad, [[0, 0], [0, 0], [5, 5]])


@pytest.mark.parametrize("remat", ["none", "full", "convs"])
@pytest.mark.parametrize("scan", [False, True])
def test_stacked_blocks_run_in_order_each_with_its_own(scan, remat):
    class Parent(nn.Module):
        @nn.compact
        def __call__(self, h):
            def body(params, h, index, extra):
                return h * params["gain"] + extra + index

            extras = [jnp.array(10.0), jnp.array(20.0), jnp.array(30.0)]
            return run_stacked(
                self,
                "blocks",
                body,
                lambda _: {"gain": jnp.ones(())},
                h,
                extras,
                scan=scan,
                remat=remat,
            )

    params = {"blocks": {"gain": jnp.array([2.0, 3.0, 5.0])}}
    h, outputs = Parent().apply({"params": params}, jnp.array(1.0))
    # 1*2+10 = 12; 12*3+20+1 = 57; 57*5+30+2 = 317
    assert [float(o) for o in outputs] == [12.0, 57.0, 317.0]
    assert float(h) == 317.0
    drawn = Parent().init(jax.random.key(0), jnp.array(1.0))["params"]
    assert drawn["blocks"]["gain"].shape == (3,)
