"""The count of floating-point operations, against the textbook and against torch's counter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import opened

from imagen_jax.config import StageConfig, TrainConfig
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.training.flops import (
    Utilization,
    matrix_flops,
    model_flops_per_image,
)
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.state import create_state
from imagen_jax.training.step import make_train_step
from imagen_jax.types import Batch, TextCond


def convolution(x, w, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_convolutions_and_their_gradients(stride, groups):
    x, w = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 8 // groups, 12))

    def loss(x, w):
        return jnp.sum(convolution(x, w, stride, groups) ** 2)

    side = 16 // stride
    forward = 2 * (2 * side * side) * 9 * (8 // groups) * 12
    assert matrix_flops(loss, x, w) == forward
    # The gradients by the input and by the kernel multiply the same numbers in another order.
    assert matrix_flops(jax.grad(loss, argnums=(0, 1)), x, w) == 3 * forward


def test_products_in_loops_and_branches():
    a, b = jnp.ones((5, 2, 7)), jnp.ones((5, 7, 3))
    product = 2 * 5 * 2 * 7 * 3

    def scanned(a, b):
        return jax.lax.scan(lambda c, _: (c, jax.jit(jnp.matmul)(a, b)), 0.0, None, length=4)

    def branched(a, b):
        return jax.lax.cond(a[0, 0, 0] > 0, jnp.matmul, lambda a, b: 0 * a @ b, a, b)

    assert matrix_flops(scanned, a, b) == 4 * product
    assert matrix_flops(branched, a, b) == product
    assert matrix_flops(lambda a: jnp.tanh(a) + 1, a) == 0


def test_agrees_with_xla_but_for_the_padding():
    x, w = jnp.ones((2, 32, 32, 16)), jnp.ones((3, 3, 16, 16))
    xla = jax.jit(convolution).lower(x, w).compile().cost_analysis()["flops"]
    # XLA leaves out the taps that fall off the 32x32 picture: (94 / 96)^2 = 0.959 remain.
    assert xla / matrix_flops(convolution, x, w) == pytest.approx((94 / 96) ** 2, rel=1e-3)


@pytest.mark.parity
@pytest.mark.parametrize("stride", [1, 2])
def test_counts_what_torch_counts(stride):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x, w = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 8, 12))

    def loss(x, w):
        return jnp.sum(convolution(x, w, stride) ** 2)

    image = torch.ones(2, 8, 16, 16, requires_grad=True)
    layer = torch.nn.Conv2d(8, 12, 3, stride=stride, padding=1, bias=False)
    with FlopCounterMode(display=False) as counter:
        result = layer(image)
        assert counter.get_total_flops() == matrix_flops(loss, x, w)
        (result**2).sum().backward()
    assert counter.get_total_flops() == matrix_flops(jax.grad(loss, argnums=(0, 1)), x, w)


def config(**model) -> StageConfig:
    return StageConfig(
        resolution=16,
        low_resolution=8,
        model=EfficientUNetConfig(
            channels=(16, 32),
            num_res_blocks=(3, 2),
            strides=(2, 2),
            self_attention=(False, True),
            text_attention=("none", "joint"),
            head_dim=16,
            **model,
        ),
    )


def stage(**model):
    return opened(config(**model), 8)


@pytest.mark.slow
def test_remat_and_scans_do_not_change_the_model_flops():
    plain = model_flops_per_image(stage(), 5)
    assert plain > 0
    scanned = stage(scan_blocks=True)
    assert model_flops_per_image(scanned, 5) == plain
    # The real step, rematerialised and scanned, does more: a forward pass of the blocks again.
    optimizer = make_optimizer(scanned.config.train)
    state = jax.eval_shape(lambda: create_state(scanned.network, optimizer, jax.random.key(0)))
    shape = jax.ShapeDtypeStruct
    batch = Batch(
        image=shape((2, 16, 16, 3), jnp.uint8),
        text=TextCond(tokens=shape((2, 5, 8), jnp.float32), mask=shape((2, 5), jnp.bool_)),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = make_train_step(scanned, optimizer)
    assert 2 * plain < matrix_flops(step, state, batch, key) < 2 * plain * 4 / 3
    # The plain step of two pictures has exactly twice the FLOPs of one.
    step = make_train_step(stage(), optimizer)
    # The one product beside the network sorts losses into five intervals.
    assert matrix_flops(step, state, batch, key) == 2 * plain + 2 * 2 * 5


@pytest.mark.slow
def test_crops_and_longer_texts_count_as_what_is_computed():
    whole = model_flops_per_image(stage(), 5)
    crops = opened(dataclasses.replace(config(), train=TrainConfig(crop_size=8)), 8)
    # A quarter of the pixels; the attention within them a sixteenth; text and embeddings the same.
    assert whole / 5 < model_flops_per_image(crops, 5) < whole / 2
    assert model_flops_per_image(stage(), 50) > whole


def test_utilization_is_a_share_of_the_peak_of_all_devices():
    class Device:
        device_kind = "TPU v4"

    class Four:
        size = 4
        devices = np.array([Device()] * 4)

    values = Utilization(2 * 10**12, Four()).values(275.0)
    assert values == {
        "model_flops_per_image": 2 * 10**12,
        "model_flops_per_second_per_device": 2e12 * 275 / 4,
        "mfu": 0.5,
    }
    Device.device_kind = "cpu"
    assert "mfu" not in Utilization(2 * 10**12, Four()).values(275.0)
