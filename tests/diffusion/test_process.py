"""The forward process, the posterior and the conversions against float64 numpy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process, schedules
from imagen_jax.errors import UserError

LOGSNR = np.array([-6.0, -2.5, 0.0, 1.3, 6.0], np.float32)
KINDS = ["x", "eps", "v"]
PAIRS = list(itertools.product(KINDS, KINDS))
PREDICT = {"x": process.predict_x, "eps": process.predict_eps, "v": process.predict_v}


def draw(seed, batch_size=5):
    shape = (batch_size, 3, 4, 2)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def alpha_sigma_f64(logsnr):
    snr = np.exp(np.asarray(logsnr, np.float64))[..., None, None, None]
    return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))


def test_diffuse_mixes_each_example_at_its_own_level():
    x, eps = draw(0), draw(1)
    alpha, sigma = alpha_sigma_f64(LOGSNR)
    z = process.diffuse(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(LOGSNR))
    np.testing.assert_allclose(z, alpha * x + sigma * eps, atol=1e-6)  # f32 rounding of O(1)


def test_diffuse_takes_one_level_for_the_whole_batch():
    x, eps = jnp.asarray(draw(0)), jnp.asarray(draw(1))
    np.testing.assert_array_equal(
        process.diffuse(x, eps, jnp.float32(1.3)), process.diffuse(x, eps, jnp.full((5,), 1.3))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_their_definitions(kind):
    x, eps = draw(0), draw(1)
    alpha, sigma = alpha_sigma_f64(LOGSNR)
    expected = {"x": x, "eps": eps, "v": alpha * eps - sigma * x}[kind]
    actual = process.target(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(LOGSNR), kind)
    np.testing.assert_allclose(actual, expected, atol=1e-6)  # f32 rounding of O(1)


@pytest.mark.parametrize("source, wanted", PAIRS)
def test_every_true_target_converts_to_every_other(source, wanted):
    x, eps, logsnr = jnp.asarray(draw(0)), jnp.asarray(draw(1)), jnp.asarray(LOGSNR)
    z = process.diffuse(x, eps, logsnr)
    prediction = process.target(x, eps, logsnr, source)
    converted = PREDICT[wanted](prediction, z, logsnr, source)
    # The smallest divisor at |logsnr| = 6 is 0.05: rounding of O(1) values grows twentyfold.
    np.testing.assert_allclose(converted, process.target(x, eps, logsnr, wanted), atol=2e-5)


@pytest.mark.parametrize("source, wanted", PAIRS)
def test_round_trips_of_an_arbitrary_prediction(source, wanted):
    prediction, z, logsnr = jnp.asarray(draw(2)), jnp.asarray(draw(3)), jnp.asarray(LOGSNR)
    there = PREDICT[wanted](prediction, z, logsnr, source)
    back = PREDICT[source](there, z, logsnr, wanted)
    # x -> eps -> x at logsnr -6 multiplies by 20 once each way at most.
    np.testing.assert_allclose(back, prediction, atol=1e-4)


@pytest.mark.parametrize("logsnr", [-20.0, 20.0])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_finite_at_both_ends(kind, logsnr):
    x, eps = jnp.asarray(draw(0)), jnp.asarray(draw(1))
    logsnr = jnp.full((5,), logsnr)
    z = process.diffuse(x, eps, logsnr)
    for predict in PREDICT.values():
        assert np.all(np.isfinite(predict(x, z, logsnr, kind)))


def test_an_eps_network_at_pure_noise_is_divided_by_the_right_alpha():
    z, eps = draw(0, 1), draw(1, 1)
    alpha, sigma = alpha_sigma_f64(np.array([-20.0]))
    actual = process.predict_x(jnp.asarray(eps), jnp.asarray(z), jnp.full((1,), -20.0), "eps")
    expected = (z - sigma * eps) / alpha
    # Values of some 20,000, differences of O(1) numbers over alpha = 4.5e-5: 1e-7 / 4.5e-5.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-2)


@pytest.mark.parametrize(
    "logsnr_t, logsnr_s", [(-2.0, 1.0), (0.5, 0.6), (-20.0, -5.0), (3.0, 20.0)]
)
def test_posterior_is_bayes_rule(logsnr_t, logsnr_s):
    """Adds the precisions of the prior q(z_s | x) and the likelihood q(z_t | z_s)."""
    z_t, x = draw(0, 1), draw(1, 1)
    alpha_t, sigma_t = alpha_sigma_f64(np.array([logsnr_t]))
    alpha_s, sigma_s = alpha_sigma_f64(np.array([logsnr_s]))
    ratio = alpha_t / alpha_s
    likelihood_var = sigma_t**2 - ratio**2 * sigma_s**2
    precision = 1 / sigma_s**2 + ratio**2 / likelihood_var
    expected_mean = (alpha_s * x / sigma_s**2 + ratio * z_t / likelihood_var) / precision
    mean, var = process.posterior(
        jnp.asarray(z_t), jnp.asarray(x), jnp.full((1,), logsnr_t), jnp.full((1,), logsnr_s)
    )
    assert mean.shape == z_t.shape and var.shape == (1, 1, 1, 1)
    # Roundings of logsnr up to 20 (1e-6) and of O(1) products.
    np.testing.assert_allclose(mean, expected_mean, atol=1e-5)
    np.testing.assert_allclose(var, 1 / precision, rtol=1e-5)


def test_posterior_of_no_step_stays_where_it_is():
    z, x, logsnr = jnp.asarray(draw(0)), jnp.asarray(draw(1)), jnp.asarray(LOGSNR)
    mean, var = process.posterior(z, x, logsnr, logsnr)
    np.testing.assert_array_equal(mean, z)
    np.testing.assert_array_equal(var, np.zeros((5, 1, 1, 1)))


def test_posterior_variance_survives_a_step_that_rounds_away():
    # 1 - exp(-1e-6) computed by subtraction in float32 is 10 % wrong; expm1 is not.
    step = np.float32(1e-6)
    _, var = process.posterior(
        jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)), jnp.float32(0.0), jnp.asarray(step)
    )
    np.testing.assert_allclose(np.asarray(var).item(), 0.5e-6, rtol=1e-5)


@pytest.mark.parametrize("function", [*PREDICT.values(), process.target])
def test_an_unknown_prediction_type_is_refused(function):
    x = jnp.zeros((1, 2, 2, 3))
    with pytest.raises(UserError, match="'epsilon'"):
        function(x, x, jnp.zeros((1,)), "epsilon")


def test_schedule_and_process_agree_that_variance_is_preserved():
    alpha, sigma = schedules.alpha_sigma(jnp.asarray(LOGSNR))
    np.testing.assert_allclose(alpha**2 + sigma**2, np.ones(5), rtol=1e-6)  # f32 rounding
