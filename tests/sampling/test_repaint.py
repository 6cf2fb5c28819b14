"""Drawing from and around a picture, against closed forms of Gaussian data."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import samplers, schedules
from imagen_jax.diffusion.samplers import DDIM, Ancestral
from imagen_jax.sampling import repaint as lib

GRID = samplers.uniform_grid(schedules.logsnr_cosine, 40)
KNOWN = np.float32([1.1, -0.6, 0.0])  # of the first two channels; the third is drawn


def keys_of(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def run(count, sampler, denoise=gaussian.ideal_denoiser, grid=GRID, **edit):
    keys = keys_of(count)
    noise = samplers.draw_noise(keys_of(count, 1), 0, (1, 1, 3))
    edit = lib.StageEdit(jnp.asarray(KNOWN[None, None]), **edit)
    draw = jax.jit(
        lambda noise, keys: lib.draw_edited(
            gaussian.as_denoiser(denoise), edit, noise, keys, grid, sampler
        )
    )
    return np.asarray(draw(noise, keys), np.float64)[:, 0, 0]


def test_moves_are_those_of_the_paper():
    # 5 steps, runs of 2, each twice; the noisiest run is the shorter one.
    assert lib.resampling_moves(5, 2, 2).tolist() == [
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 1],
        [1, 1, 3, 2, 0],
        [2, 1, 3, 2, 0],
        [1, 1, 3, 3, 1],
        [2, 1, 3, 3, 0],
        [3, 3, 5, 4, 0],
        [4, 3, 5, 4, 0],
        [3, 3, 5, 5, 1],
        [4, 3, 5, 5, 0],
    ]
    assert lib.resampling_moves(4, 4, 1)[:, 0].tolist() == [0, 1, 2, 3]


def test_added_noise_keeps_the_marginal():
    """q(z_t | z_s) after q(z_s | x) is q(z_t | x): exactly in the coefficients."""
    logsnr_s, logsnr_t = jnp.float32(2.0), jnp.float32(-1.0)
    one, none = jnp.ones((1, 1, 1, 3)), jnp.zeros((1, 1, 1, 3))
    kept = float(lib.renoise(one, logsnr_s, logsnr_t, none)[0, 0, 0, 0])
    added = float(lib.renoise(none, logsnr_s, logsnr_t, one)[0, 0, 0, 0])
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (gaussian.alpha_sigma(x) for x in (2.0, -1.0))
    # Tolerance: a few roundings of float32.
    assert kept * alpha_s == pytest.approx(alpha_t, rel=1e-6)
    assert (kept * sigma_s) ** 2 + added**2 == pytest.approx(sigma_t**2, rel=1e-6)


def test_without_skip_and_mask_it_is_plain_sampling():
    keys, noise = keys_of(4), samplers.draw_noise(keys_of(4, 1), 0, (1, 1, 3))
    denoise = gaussian.as_denoiser(gaussian.ideal_denoiser)
    want = jax.jit(lambda z, k: samplers.sample(denoise, z, k, GRID, Ancestral()))(noise, keys)
    np.testing.assert_array_equal(run(4, Ancestral()), np.asarray(want)[:, 0, 0])


@pytest.mark.parametrize("sampler", [DDIM(), Ancestral(gamma=0.0)])
def test_the_distribution_after_partial_noise(sampler):
    """Mean and covariance after SDEdit from a level are those of the posterior chain.

    With z = alpha x + sigma eps and Gaussian data, deterministic and ancestral sampling are affine
    maps with noise; for the exact solver of either, the mean moves to E[x | z] at the level.
    """
    skip = 24
    alpha, _ = gaussian.alpha_sigma(float(GRID[skip]))
    mean, covariance = gaussian.marginal(float(GRID[skip]))
    gain = gaussian.ideal_gain(float(GRID[skip]))
    drawn = run(4000, sampler, skip=skip)
    if isinstance(sampler, DDIM):  # the flow of the ODE maps N(mean, covariance) to N(m, C)
        values, vectors = np.linalg.eigh(gaussian.COVARIANCE)
        noised = vectors.T @ covariance @ vectors
        slope = vectors @ np.diag(np.sqrt(values / np.diag(noised))) @ vectors.T
    else:
        slope = gain  # the mean of the posterior of x given z
    expected = gaussian.MEAN + slope @ (alpha * KNOWN - mean)
    # 4000 draws with standard deviations up to 0.6: five standard errors are 0.05; the 16 steps
    # that are left move the mean by less.
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.05)
    assert np.abs(expected - gaussian.MEAN).max() > 0.15  # it is not the mean of the data


def test_little_noise_returns_the_picture_and_much_forgets_it():
    distances = [
        np.sqrt(np.mean((run(500, DDIM(), skip=skip) - KNOWN) ** 2)) for skip in (38, 30, 20, 0)
    ]
    assert distances == sorted(distances)
    # From noise the distance is that of a draw of the data.
    drawn = np.sqrt((np.trace(gaussian.COVARIANCE) + np.sum((gaussian.MEAN - KNOWN) ** 2)) / 3)
    assert distances[0] < 0.1 and distances[-1] == pytest.approx(drawn, rel=0.05)


KEEP = np.array([[[True, True, False]]])[None]


def conditional():
    """Mean and variance of the third channel given the first two."""
    c, m = gaussian.COVARIANCE, gaussian.MEAN
    row = c[2, :2] @ np.linalg.inv(c[:2, :2])
    return m[2] + row @ (KNOWN[:2] - m[:2]), c[2, 2] - row @ c[:2, 2]


@pytest.mark.parametrize("jump", [1, 3])
def test_resampling_recovers_the_conditional_mean(jump):
    mean, variance = conditional()
    assert abs(mean - gaussian.MEAN[2]) > 0.5  # what is known says much
    error = {}
    for resample in (1, 30):
        drawn = run(2000, Ancestral(), keep=KEEP[0], resample=resample, jump=jump)
        np.testing.assert_array_equal(drawn[:, :2], np.broadcast_to(KNOWN[:2], (2000, 2)))
        error[resample] = abs(drawn[:, 2].mean() - mean)
    # The standard error of the mean is below 0.01, and the steps before the last runs leave a bias
    # that falls with their number. One pass is off by 0.24.
    assert np.sqrt(variance / 2000) < 0.01
    assert error[30] < 0.05 and error[30] < 0.25 * error[1]


class TwoStep:
    """A multistep sampler that counts its steps since `init` and refuses a history of elsewhere."""

    def init(self, z, grid):
        return jnp.int32(0), jnp.zeros_like(z), grid[0]

    def step(self, denoise, z, carry, interval, keys):
        count, seen, reached = carry
        z_s, x_hat, _ = DDIM().step(denoise, z, (), interval, keys)
        # NaN unless the step begins where the last one ended, and the count is that of the run.
        valid = (count == interval.index) & (reached == interval.logsnr_t)
        z_s = jnp.where(valid, z_s, jnp.nan)
        return z_s, jnp.where(valid, x_hat, jnp.nan), (count + 1, seen, interval.logsnr_s)


jax.tree_util.register_dataclass(TwoStep, [], [])


def test_runs_begin_anew_for_multistep_samplers():
    drawn = run(3, TwoStep(), keep=KEEP[0], resample=3, jump=7)
    assert np.isfinite(drawn).all()


def test_passes_draw_different_noise():
    """Ten passes of one step each: without new noise in each the last would repeat the first."""
    seen = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), z, ordered=True)
        return gaussian.ideal_denoiser(z, logsnr)

    run(1, Ancestral(), denoise, GRID[18:23], keep=KEEP[0], resample=3, jump=2)
    jax.effects_barrier()
    assert len(seen) == 12
    assert len({float(value[0, 0, 0, 2]) for value in seen}) == 12
    assert len({float(value[0, 0, 0, 0]) for value in seen}) == 12
