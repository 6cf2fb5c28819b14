"""Rematerialisation: the gradient stays, and the backward pass repeats what it should."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models import (
    EfficientUNetConfig,
    NetworkConfig,
    UNetConfig,
    apply_network,
    init_params,
    project_text,
)
from imagen_jax.types import TextCond

SHARED = {
    "channels": (8, 8),
    "num_res_blocks": (2, 2),
    "self_attention": (False, True),
    "text_attention": ("none", "joint"),
    "head_dim": 8,
}
CONFIGS = {
    "unet": UNetConfig(**SHARED),
    "efficient_unet": EfficientUNetConfig(strides=(1, 2), **SHARED),
}


def gradient_of(config: NetworkConfig):
    """A gradient as a function of its parameters, and parameters that are nowhere zero."""
    model = config.make_network(low_res=False, text_dim=4)
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape),
        init_params(model, jax.random.key(0)),
    )
    z = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    text = TextCond(jax.random.normal(jax.random.key(2), (2, 3, 4)), jnp.ones((2, 3), bool))

    def loss(params):
        features = project_text(model, params, text)
        return jnp.mean(apply_network(model, params, z, jnp.zeros(2), features) ** 2)

    return jax.grad(loss), params


def count(jaxpr, name: str) -> int:
    """Equations of a primitive, those of inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            total += count(inner, name) if hasattr(inner, "eqns") else 0
    return total


def convolutions(config: NetworkConfig) -> int:
    gradient, params = gradient_of(config)
    return count(jax.make_jaxpr(gradient)(params).jaxpr, "conv_general_dilated")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "efficient_unet"])
def test_the_backward_pass_repeats_what_the_policy_says(kind):
    config = CONFIGS[kind]
    none = convolutions(config)
    # Blocks on both sides of a level ("unet" has one more on the way up). The result of a block's
    # last convolution goes into a sum alone, so only attention in the same block asks for it again.
    blocks = 4 if kind == "efficient_unet" else 5
    lower = 2 * blocks if kind == "unet" else blocks
    full = convolutions(dataclasses.replace(config, remat=("full", "full")))
    assert full == none + blocks + lower
    one_level = convolutions(dataclasses.replace(config, remat=("none", "full")))
    assert one_level == none + lower
    assert convolutions(dataclasses.replace(config, remat=("convs", "convs"))) == none


@pytest.mark.parametrize("kind", ["unet", "efficient_unet"])
def test_kept_results_of_convolutions_take_more_memory_than_none(kind):
    config = CONFIGS[kind]

    def kept(remat: str) -> int:
        gradient, params = gradient_of(dataclasses.replace(config, remat=(remat, remat)))
        program = jax.jit(gradient).lower(params).as_text()
        # What a checkpoint keeps goes through a barrier; none is needed where all is kept.
        return program.count("optimization_barrier")

    assert kept("none") == 0
    assert kept("full") > 0 and kept("convs") > 0


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", ["unet", "efficient_unet"])
def test_the_gradient_does_not_depend_on_what_is_kept(kind, scan):
    config = dataclasses.replace(CONFIGS[kind], scan_blocks=scan)
    want = None
    for remat in ("none", "full", "convs"):
        gradient, params = gradient_of(dataclasses.replace(config, remat=(remat, remat)))
        have = jax.jit(gradient)(params)
        if want is None:
            want = have
            continue
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want))
        for path, leaf in jax.tree_util.tree_leaves_with_path(want):
            # The same sums, fused by the compiler in another way: rounding in f32.
            np.testing.assert_allclose(
                _at(have, path),
                leaf,
                rtol=1e-4,
                atol=1e-6 * largest,
                err_msg=jax.tree_util.keystr(path),
            )
    assert math.isfinite(largest) and largest > 0.0


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree
