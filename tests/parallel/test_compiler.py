"""The options are accepted by this backend and keep convolutions in XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.parallel.compiler import compiler_options


def kernel_gradient(x, kernel):
    def convolve(kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    return jax.grad(convolve)(kernel)


def test_convolutions_stay_with_xla_and_mean_the_same():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 64))
    kernel = jnp.zeros((3, 3, 64, 64))
    lowered = jax.jit(kernel_gradient).lower(x, kernel)
    program = lowered.compile(compiler_options=compiler_options(jax.devices("cpu")[0]))
    assert "ynn" not in program.as_text()
    # The gradient of a sum of outputs: each tap sums the pixels that it meets.
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = [
        [padded[:, i : i + 8, j : j + 8].sum((0, 1, 2)) for j in range(3)] for i in range(3)
    ]
    expected = np.broadcast_to(np.array(expected)[..., None], kernel.shape)
    # float32 sums over 128 values of size 1.
    np.testing.assert_allclose(program(x, kernel), expected, atol=1e-4)
