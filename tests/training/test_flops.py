"""The count of floating-point operations, against the textbook and against torch's counter."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.training.flops import matrix_flops


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
