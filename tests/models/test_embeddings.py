"""The inputs of the time embedding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from imagen_jax.models.embeddings import inv_cos, sinusoid


def test_inv_cos_is_the_time_of_the_cosine_schedule():
    t = np.linspace(0.001, 0.999, 50)
    logsnr = -2.0 * np.log(np.tan(np.pi * t / 2.0))  # alpha = cos(pi t / 2), not cut at +-20
    np.testing.assert_allclose(inv_cos(jnp.float32(logsnr)), t, rtol=1e-4)  # f32 exp and log
    ends = inv_cos(jnp.array([-jnp.inf, jnp.inf, -20.0, 20.0]))
    np.testing.assert_array_equal(ends[:2], ends[2:])


def test_sinusoid_sines_first_base_10000_divisor_half_minus_1():
    x = np.array([0.0, 1.0, 437.0])
    expected = np.zeros((3, 8))
    for i in range(4):
        expected[:, i] = np.sin(x / 10000.0 ** (i / 3))
        expected[:, 4 + i] = np.cos(x / 10000.0 ** (i / 3))
    # f32 angles near 437 have a spacing of 3e-5.
    np.testing.assert_allclose(sinusoid(jnp.float32(x), 8), expected, atol=1e-4)
