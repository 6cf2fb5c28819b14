"""The solvers at the ends of schedules, with noise of their own, and with traced settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow import VARIANCES, deviation, gaussian_denoiser, integrate

from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.grids import ExplicitGrid, KarrasGrid, LogSNRGrid
from imagen_jax.diffusion.samplers import DDIM, DPMSolver, Euler, Heun, SDEDPMSolver, UniPC
from imagen_jax.diffusion.schedules import logsnr_cosine
from imagen_jax.errors import UserError

SOLVERS = [
    DPMSolver(order=3),
    DPMSolver(order=3, variant="singlestep"),
    SDEDPMSolver(),
    Heun(s_churn=5.0),
    Euler(s_churn=5.0),
    UniPC(order=3),
]


@pytest.mark.parametrize("sampler", SOLVERS, ids=lambda sampler: sampler.kind)
def test_repeated_ends_of_a_clipped_schedule_are_harmless(sampler):
    keys = jax.random.split(jax.random.key(0), 2)
    z = samplers.draw_noise(keys, 9, (2, 2, 3))
    grid = jnp.array([-20.0, -20.0, -9.0, -3.0, 1.0, 1.0, 6.0, 20.0, 20.0])
    x_hat = samplers.sample(gaussian_denoiser, z, keys, grid, sampler)
    assert np.all(np.isfinite(x_hat)) and np.max(np.abs(x_hat)) < 10.0


@pytest.mark.parametrize("sampler", [SDEDPMSolver(), Heun(s_churn=20.0, s_noise=1.0)], ids=str)
def test_fresh_noise_keeps_the_variance(sampler):
    count = 4000
    keys = jax.random.split(jax.random.key(0), count)
    z = samplers.draw_noise(keys, 999, (2, 2, 3))
    grid = KarrasGrid().at(logsnr_cosine, 60)[:-1]
    end = np.asarray(integrate(gaussian_denoiser, z, keys, grid, sampler))
    found = np.var(end, axis=0)
    expected = deviation(float(grid[-1]))[0] ** 2
    assert expected.shape == VARIANCES[0].shape
    # Five standard errors, sqrt(2 / n) each, and 3 % for the 60 steps.
    np.testing.assert_allclose(found, expected, rtol=5 * np.sqrt(2 / count) + 0.03)


def test_grids_rise_and_have_their_ends():
    for grid in (KarrasGrid(), LogSNRGrid()):
        levels = np.asarray(grid.at(logsnr_cosine, 20))
        assert levels.shape == (21,) and np.all(np.diff(levels) > 0)
        sigmas = np.exp(-levels / 2)
        np.testing.assert_allclose(sigmas[[0, -2]], [80.0, 0.002], rtol=1e-4)  # f32 exponentials
    i = np.arange(20) / 19
    karras = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    levels = np.asarray(KarrasGrid().at(logsnr_cosine, 20))[:-1]
    np.testing.assert_allclose(np.exp(-levels / 2), karras, rtol=1e-4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ExplicitGrid((1.0, 1.0)), "must rise"),
        (lambda: KarrasGrid(rho=-1.0), "rho=-1.0"),
        (lambda: LogSNRGrid(sigma_max=1.0, sigma_min=2.0), "sigma_min=2.0"),
        (lambda: DPMSolver(order=0), "order=0"),
        (lambda: Heun(s_min=3.0, s_max=2.0), "s_min=3.0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_numbers_are_traced():
    keys = jax.random.split(jax.random.key(0), 2)
    z = samplers.draw_noise(keys, 9, (2, 2, 3))

    @jax.jit
    def draw(z, sampler, grid):
        levels = grid.at(logsnr_cosine, 4)
        return samplers.sample(gaussian_denoiser, z, keys, levels, sampler)

    for rho, churn in ((7.0, 0.0), (5.0, 3.0)):
        draw(z, Heun(s_churn=churn), KarrasGrid(rho=rho))
    assert draw._cache_size() == 1
    same = [
        samplers.sample(gaussian_denoiser, z, keys, jnp.linspace(-9.0, 9.0, 9), sampler)
        for sampler in (DDIM(), DPMSolver(order=1), Euler())
    ]
    np.testing.assert_allclose(same[1], same[0], atol=1e-5)  # f32 rounding of 8 steps
    np.testing.assert_allclose(same[2], same[0], atol=1e-5)
