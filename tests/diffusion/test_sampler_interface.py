"""What the sampling loop offers to samplers and hooks beyond what DDIM and Ancestral use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import (
    COVARIANCE,
    alpha_sigma,
    as_denoiser,
    cosine,
    ideal_denoiser,
    marginal,
    measure_affine,
    run,
)

from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.errors import UserError


class Heun:
    """A second-order sampler (Karras et al. 2022) of the probability-flow ODE.

    It calls the denoiser twice a step, and its carry counts the calls. In place of x_hat it returns
    the state, so that `sample` ends with the state at the end of the grid.
    """

    def init(self, z, grid):
        del z, grid
        return jnp.zeros((), jnp.int32)

    def step(self, denoise, z, carry, interval, keys):
        del keys

        def split(logsnr):
            return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))

        def slope(y, level, logsnr):
            alpha, _ = split(logsnr)
            return (y - denoise(alpha * y, jnp.full((z.shape[0],), logsnr)).x_hat) / level

        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(split, (interval.logsnr_t, interval.logsnr_s))
        y, t, s = z / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s
        first = slope(y, t, interval.logsnr_t)
        second = slope(y + (s - t) * first, s, interval.logsnr_s)
        z_s = alpha_s * (y + (s - t) * (first + second) / 2)
        return z_s, z_s, carry + 2


def test_a_sampler_may_call_the_denoiser_twice_on_any_grid():
    keys = jax.random.split(jax.random.key(0), 4)
    start, end = -2.0, 6.0
    (mean_t, _), (mean_s, _) = marginal(start), marginal(end)
    values, vectors = np.linalg.eigh(COVARIANCE)
    # The exact flow scales each principal axis by the ratio of its standard deviations.
    deviation_t, deviation_s = (
        np.sqrt(alpha**2 * values + sigma**2) for alpha, sigma in map(alpha_sigma, (start, end))
    )
    exact = vectors @ np.diag(deviation_s / deviation_t) @ vectors.T
    errors = []
    for num_steps in (20, 40):
        grid = jnp.linspace(start, end, num_steps + 1)
        a, b = measure_affine(
            lambda z, grid=grid: samplers.sample(as_denoiser(ideal_denoiser), z, keys, grid, Heun())
        )
        np.testing.assert_allclose(b + a @ mean_t, mean_s, atol=0.02)
        errors.append(np.max(np.abs(a - exact)))
    assert errors[1] < 0.35 * errors[0]  # second order: a quarter
    assert errors[1] < 0.01


def test_the_carry_goes_from_step_to_step():
    class CarryAsResult(Heun):
        def step(self, denoise, z, carry, interval, keys):
            z_s, _, carry = super().step(denoise, z, carry, interval, keys)
            return z_s, jnp.full_like(z, carry), carry

    keys = jax.random.split(jax.random.key(0), 1)
    z = jnp.ones((1, 1, 1, 3))
    result = samplers.sample(
        as_denoiser(ideal_denoiser), z, keys, jnp.linspace(-2.0, 2.0, 6), CarryAsResult()
    )
    np.testing.assert_array_equal(result, 10.0)  # five steps of two calls


def test_a_hook_sees_each_step_and_may_change_the_state():
    keys = jax.random.split(jax.random.key(0), 2)
    z = samplers.draw_noise(keys, 7, (2, 2, 3))
    seen = []

    def hook(z, x_hat, interval):
        jax.debug.callback(
            lambda *v: seen.append([np.asarray(x) for x in v]),
            interval.index,
            interval.logsnr_t,
            interval.logsnr_s,
            interval.is_last,
            x_hat,
            ordered=True,
        )
        return z.at[:, 0].set(5.0)

    def denoise(z, logsnr):
        del logsnr
        return jnp.tanh(z)

    result = np.asarray(run(z, keys, 3, DDIM(), denoise, hook))
    jax.effects_barrier()
    levels = cosine(np.linspace(1.0, 0.0, 4))
    assert [int(step[0]) for step in seen] == [0, 1, 2]
    np.testing.assert_allclose([step[1] for step in seen], levels[:-1], rtol=1e-5)
    np.testing.assert_allclose([step[2] for step in seen], levels[1:], rtol=1e-5)
    assert [bool(step[3]) for step in seen] == [False, False, True]
    # The state that the hook changed is what the next step starts from, and what is returned.
    np.testing.assert_allclose(seen[1][4][:, 0], np.tanh(5.0), rtol=1e-6)
    np.testing.assert_array_equal(result[:, 0], 5.0)
    np.testing.assert_array_equal(result[:, 1], seen[-1][4][:, 1])


def test_a_grid_without_a_step_is_refused():
    z = jnp.zeros((1, 1, 1, 3))
    keys = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(UserError, match="1 log-SNRs"):
        samplers.sample(as_denoiser(ideal_denoiser), z, keys, jnp.zeros(1), DDIM())
