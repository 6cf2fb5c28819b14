"""Samplers with the ideal denoiser of Gaussian data, whose every step is known exactly.

The data are "images" of 1x1x3 drawn from N(m, C). The ideal denoiser E[x | z] is affine in z, so
each step of a sampler is an affine map with Gaussian noise, and mean and covariance of its
state follow an exact recursion, computed here in float64 from first principles.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import (
    COVARIANCE,
    IDENTITY,
    MEAN,
    alpha_sigma,
    cosine,
    ideal_denoiser,
    ideal_gain,
    marginal,
    measure_affine,
    run,
)

from imagen_jax.diffusion import process, samplers
from imagen_jax.diffusion.samplers import DDIM, Ancestral, ancestral
from imagen_jax.errors import UserError


def measure_step(step, logsnr_t, logsnr_s):
    """A, b, N of one step z_s = A z + b + N noise with the ideal denoiser, read off the code."""
    logsnr_t, logsnr_s = jnp.full((4,), logsnr_t), jnp.full((4,), logsnr_s)
    zero = jnp.zeros((4, 1, 1, 3))
    a, b = measure_affine(lambda z: step(z, ideal_denoiser(z, logsnr_t), logsnr_t, logsnr_s, zero))
    x_hat = ideal_denoiser(zero, logsnr_t)
    n, _ = measure_affine(lambda noise: step(zero, x_hat, logsnr_t, logsnr_s, noise))
    return a, b, n


def noise_variance_of(kind, parameter, logsnr_t, logsnr_s):
    """Variance of the noise of a step, from the two variances between which it may lie."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    forward = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2  # of q(z_t | z_s)
    posterior = forward * sigma_s**2 / sigma_t**2  # of q(z_s | z_t, x)
    if kind == "ddim":
        return parameter**2 * posterior
    return posterior ** (1 - parameter) * forward**parameter


def exact_recursion(kind, parameter, logsnr_t, logsnr_s, mean, covariance):
    """Mean and covariance after a step from N(mean, covariance) with the ideal denoiser."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    variance = noise_variance_of(kind, parameter, logsnr_t, logsnr_s)
    # The mean of z_s is alpha_s x + keep (z_t - alpha_t x). An eta of DDIM spends what is left of
    # sigma_s^2; the mean of eq. 6 is that of the posterior whatever gamma.
    spent = variance if kind == "ddim" else noise_variance_of("ddim", 1.0, logsnr_t, logsnr_s)
    keep = np.sqrt(sigma_s**2 - spent) / sigma_t
    gain = ideal_gain(logsnr_t)
    matrix = keep * IDENTITY + (alpha_s - keep * alpha_t) * gain
    offset = (alpha_s - keep * alpha_t) * (MEAN - alpha_t * gain @ MEAN)
    return matrix @ mean + offset, matrix @ covariance @ matrix.T + variance * IDENTITY


SAMPLERS = {"ddim": DDIM, "ancestral": Ancestral}
STEPS = {
    "ddim": lambda parameter: functools.partial(samplers.ddim_step, eta=parameter),
    "ancestral": lambda parameter: functools.partial(samplers.ancestral_step, gamma=parameter),
}
SETTINGS = [("ddim", 0.0), ("ddim", 0.4), ("ddim", 1.0)]
SETTINGS += [("ancestral", 0.0), ("ancestral", 0.3), ("ancestral", 1.0)]


@pytest.mark.parametrize("kind, parameter", SETTINGS)
def test_every_step_has_the_exact_mean_and_covariance(kind, parameter):
    mean, covariance = np.zeros(3), IDENTITY
    expected_mean, expected_covariance = mean, covariance
    levels = cosine(np.linspace(1.0, 0.0, 9))
    for logsnr_t, logsnr_s in itertools.pairwise(levels):
        a, b, n = measure_step(STEPS[kind](parameter), logsnr_t, logsnr_s)
        mean, covariance = a @ mean + b, a @ covariance @ a.T + n @ n.T
        expected_mean, expected_covariance = exact_recursion(
            kind, parameter, logsnr_t, logsnr_s, expected_mean, expected_covariance
        )
        # float32 steps with O(1) entries; the errors of eight steps add up.
        np.testing.assert_allclose(mean, expected_mean, atol=1e-5)
        np.testing.assert_allclose(covariance, expected_covariance, atol=1e-5)


@pytest.mark.parametrize("kind, parameter", [("ddim", 0.0), ("ddim", 0.4), ("ancestral", 0.0)])
@pytest.mark.parametrize("logsnr_t, logsnr_s", [(-4.0, -1.0), (-0.3, 0.5), (1.0, 6.0)])
def test_a_step_from_the_true_marginal_misses_only_the_denoisers_uncertainty(
    kind, parameter, logsnr_t, logsnr_s
):
    """Law of total covariance: with a draw of x | z_t in place of x_hat a step would land exactly
    on the marginal at s; E[x | z_t] lacks the covariance of that draw, times (d z_s / d x)^2."""
    step = STEPS[kind](parameter)
    a, b, n = measure_step(step, logsnr_t, logsnr_s)
    mean_t, covariance_t = marginal(logsnr_t)
    mean_s, covariance_s = marginal(logsnr_s)
    zero, levels = jnp.zeros((4, 1, 1, 3)), (jnp.float32(logsnr_t), jnp.float32(logsnr_s))
    by_x, _ = measure_affine(lambda x: step(zero, x, *levels, zero))
    uncertainty = np.linalg.inv(
        np.linalg.inv(COVARIANCE) + np.exp(logsnr_t) * IDENTITY
    )  # of x given z_t
    np.testing.assert_allclose(a @ mean_t + b, mean_s, atol=3e-6)  # f32 steps of O(1)
    np.testing.assert_allclose(
        a @ covariance_t @ a.T + n @ n.T,
        covariance_s - by_x @ uncertainty @ by_x.T,
        atol=3e-6,
    )


def test_ddim_with_eta_one_is_ancestral_with_gamma_zero():
    keys = jax.random.split(jax.random.key(0), 3)
    z, x_hat, noise = (jax.random.normal(key, (6, 4, 4, 3)) for key in keys)
    logsnr_t = jnp.array([-20.0, -9.0, -2.0, 0.0, 4.0, 12.0])
    logsnr_s = jnp.array([-12.0, -8.9, 1.0, 0.01, 20.0, 20.0])
    ddim = samplers.ddim_step(z, x_hat, logsnr_t, logsnr_s, noise, 1.0)
    ancestral = samplers.ancestral_step(z, x_hat, logsnr_t, logsnr_s, noise, 0.0)
    np.testing.assert_allclose(ddim, ancestral, atol=1e-5)  # f32 rounding of O(1) terms


def test_ddim_without_noise_is_equation_5():
    keys = jax.random.split(jax.random.key(1), 2)
    z, x_hat = (np.asarray(jax.random.normal(key, (2, 3, 3, 3))) for key in keys)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(-1.0), alpha_sigma(0.7)
    expected = alpha_s * x_hat + sigma_s / sigma_t * (z - alpha_t * x_hat)
    nan = jnp.zeros_like(z)
    actual = samplers.ddim_step(z, x_hat, jnp.float32(-1.0), jnp.float32(0.7), nan, 0.0)
    np.testing.assert_allclose(actual, expected, atol=1e-6)  # f32 rounding of O(1)


@pytest.mark.parametrize("kind, parameter", SETTINGS)
def test_a_step_that_goes_nowhere_and_the_ends_of_the_schedule_are_harmless(kind, parameter):
    z, x_hat, noise = (jax.random.normal(jax.random.key(seed), (1, 2, 2, 3)) for seed in range(3))
    step = STEPS[kind](parameter)
    for level in (-20.0, 0.0, 20.0):  # a clipped schedule repeats its end
        stay = step(z, x_hat, jnp.float32(level), jnp.float32(level), noise)
        # eps_hat is divided by sigma (4.5e-5 at 20) and multiplied by it again.
        np.testing.assert_allclose(stay, z, atol=1e-5)
    whole_way = step(z, x_hat, jnp.float32(-20.0), jnp.float32(20.0), noise)
    assert np.all(np.isfinite(whole_way))


def test_the_uniform_grid_has_uniform_times_with_exact_ends():
    grid = np.asarray(samplers.uniform_grid(lambda t: t, 10))
    assert grid.dtype == np.float32 and grid.shape == (11,)
    assert grid[0] == 1.0 and grid[-1] == 0.0
    np.testing.assert_allclose(np.diff(grid), np.full(10, -0.1), atol=2e-7)  # f32 rounding
    np.testing.assert_array_equal(samplers.uniform_grid(lambda t: t, 1), [1.0, 0.0])
    with pytest.raises(UserError, match="num_steps=0"):
        samplers.uniform_grid(lambda t: t, 0)


def expected_sample(kind, parameter, num_steps):
    """Mean and covariance of the whole sampler's output, x_hat of the last state."""
    mean, covariance = np.zeros(3), IDENTITY
    levels = cosine(np.linspace(1.0, 0.0, num_steps + 1))
    for logsnr_t, logsnr_s in itertools.pairwise(levels[:-1]):
        mean, covariance = exact_recursion(kind, parameter, logsnr_t, logsnr_s, mean, covariance)
    gain = ideal_gain(levels[-2])
    alpha, _ = alpha_sigma(levels[-2])
    return MEAN + gain @ (mean - alpha * MEAN), gain @ covariance @ gain.T


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_ddim_sampler_is_the_recursion_and_ends_in_x_hat(num_steps):
    keys = jax.random.split(jax.random.key(0), 4)
    a, b = measure_affine(lambda z: run(z, keys, num_steps, DDIM(0.0)))
    mean, covariance = expected_sample("ddim", 0.0, num_steps)
    np.testing.assert_allclose(b, mean, atol=1e-5)  # f32 errors of at most 7 steps
    np.testing.assert_allclose(a @ a.T, covariance, atol=1e-5)


def test_the_ddim_sampler_converges_to_the_data():
    keys = jax.random.split(jax.random.key(0), 4)
    errors = []
    for num_steps in (32, 128):
        a, b = measure_affine(lambda z, n=num_steps: run(z, keys, n, DDIM(0.0)))
        np.testing.assert_allclose(b, MEAN, atol=0.02 * 32 / num_steps)
        errors.append(np.max(np.abs(a @ a.T - COVARIANCE)))
    assert errors[1] < 0.4 * errors[0]  # first order: a quarter, with room for higher orders
    assert errors[1] < 0.02


@pytest.mark.parametrize("kind, parameter", [("ddim", 1.0), ("ancestral", 0.3)])
def test_drawn_pictures_have_the_predicted_mean_and_covariance(kind, parameter):
    num_images, num_steps = 20_000, 6
    keys = jax.random.split(jax.random.key(0), num_images)
    z_1 = samplers.draw_noise(jax.random.split(jax.random.key(1), num_images), 0, (1, 1, 3))
    draw = jax.jit(lambda z, keys: run(z, keys, num_steps, SAMPLERS[kind](parameter)))
    x = np.asarray(draw(z_1, keys), np.float64)[:, 0, 0]
    mean, covariance = expected_sample(kind, parameter, num_steps)
    deviation = np.sqrt(np.diag(covariance))
    # Five standard errors: deviation / sqrt(n) of a mean, about 1.42 c / sqrt(n) of a covariance.
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 5 * deviation / np.sqrt(num_images))
    np.testing.assert_array_less(
        np.abs(np.cov(x.T) - covariance),
        5 * 1.42 * np.outer(deviation, deviation) / np.sqrt(num_images),
    )


def test_an_image_does_not_depend_on_its_neighbours_or_the_size_of_the_batch():
    # Elementwise on purpose: a matrix product may round differently for another batch size.
    def denoise(z, logsnr):
        return jnp.tanh(z) * jax.nn.sigmoid(logsnr)[:, None, None, None]

    keys = jax.vmap(jax.random.key)(jnp.arange(5))
    z_1 = samplers.draw_noise(keys, 1000, (4, 4, 3))
    sampler = Ancestral(0.2)
    together = run(z_1, keys, 4, sampler, denoise)
    for chosen in ([3], [4, 0], [1, 3, 1]):
        index = jnp.array(chosen)
        apart = run(z_1[index], keys[index], 4, sampler, denoise)
        # Vectorised loops of other lengths may round the last bit of tanh differently.
        np.testing.assert_allclose(apart, together[index], atol=1e-6)
    assert not np.allclose(together[0], together[1])


def test_noise_is_standard_normal_and_differs_between_steps_and_images():
    keys = jax.random.split(jax.random.key(0), 2)
    first, second = (
        samplers.draw_noise(keys, 0, (50, 50, 3)),
        samplers.draw_noise(keys, 1, (50, 50, 3)),
    )
    four = np.stack([first[0], first[1], second[0], second[1]]).reshape(4, -1)
    # 7500 draws: correlations have a standard error of 0.0115, variances of 0.0163.
    np.testing.assert_allclose(np.cov(four), np.eye(4), atol=0.08)
    alone = jax.random.normal(jax.random.fold_in(keys[1], 1), (50, 50, 3))
    np.testing.assert_array_equal(second[1], alone)


def test_the_denoiser_sees_every_time_but_zero_once_and_noise_is_never_reused(monkeypatch):
    seen = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda v: seen.append(np.asarray(v)), logsnr, ordered=True)
        return z

    noises = []

    def record(z, x_hat, logsnr_t, logsnr_s, noise, gamma):
        jax.debug.callback(lambda v: noises.append(np.asarray(v)), noise, ordered=True)
        return x_hat

    monkeypatch.setattr(ancestral, "ancestral_step", record)
    keys = jax.random.split(jax.random.key(0), 2)
    run(jnp.ones((2, 1, 1, 3)), keys, 5, Ancestral(), denoise)
    jax.effects_barrier()
    np.testing.assert_allclose(
        np.stack(seen), np.tile(cosine(np.linspace(1.0, 0.2, 5))[:, None], (1, 2)), rtol=1e-5
    )
    for i, noise in enumerate(noises[:-1]):
        np.testing.assert_array_equal(noise, samplers.draw_noise(keys, i, (1, 1, 3)))
    assert len({noise.tobytes() for noise in noises}) == 5


def test_sampler_settings_may_be_traced_and_only_the_last_state_is_kept():
    keys = jax.random.split(jax.random.key(0), 2)
    z_1 = samplers.draw_noise(keys, 99, (8, 8, 3))

    def denoise(z, logsnr):
        return jnp.tanh(z)

    @jax.jit
    def draw(z, eta):
        return run(z, keys, 50, DDIM(eta), denoise)

    fixed = run(z_1, keys, 50, DDIM(0.5), denoise)
    np.testing.assert_allclose(draw(z_1, 0.5), fixed, atol=1e-4)  # 50 steps of f32 rounding
    memory = draw.lower(z_1, 0.5).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 20 * z_1.nbytes  # the trajectory would take 50 states


@pytest.mark.parametrize("value", [-0.1, 1.5, 2])
def test_eta_and_gamma_outside_the_unit_interval_are_refused(value):
    with pytest.raises(UserError, match=f"eta={value}"):
        DDIM(value)
    with pytest.raises(UserError, match=f"gamma={value}"):
        Ancestral(value)


def test_the_ideal_denoiser_of_these_tests_is_the_regression():
    logsnr = np.array([-3.0, 0.5, 4.0, 8.0])
    for level in logsnr:
        a, b = measure_affine(lambda z, level=level: ideal_denoiser(z, jnp.full((4,), level)))
        alpha, _ = alpha_sigma(level)
        np.testing.assert_allclose(a, ideal_gain(level), atol=1e-5)  # f32 rounding
        np.testing.assert_allclose(b, MEAN - alpha * ideal_gain(level) @ MEAN, atol=1e-5)


def test_process_and_samplers_share_one_posterior():
    keys = jax.random.split(jax.random.key(4), 2)
    z, x = (jax.random.normal(key, (1, 2, 2, 3)) for key in keys)
    levels = (jnp.float32(-1.0), jnp.float32(2.0))
    mean, var = process.posterior(z, x, *levels)
    step = samplers.ancestral_step(z, x, *levels, jnp.ones_like(z), 0.0)
    np.testing.assert_allclose(step - mean, np.full((1, 2, 2, 3), np.sqrt(var.item())), atol=1e-6)
