"""The log-SNR schedules against closed forms in float64."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import DiffusionConfig
from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.schedules import Cosine, Linear, NormalLevels, ShiftedCosine
from imagen_jax.errors import UserError

TIMES = np.linspace(0.0, 1.0, 1001)
EVERY_SCHEDULE = [
    DiffusionConfig(schedule=Cosine()),
    DiffusionConfig(schedule=Linear()),
    DiffusionConfig(schedule=ShiftedCosine(64)),
    DiffusionConfig(schedule=ShiftedCosine(4096)),
    DiffusionConfig(train_levels=NormalLevels(mean=-2.0, std=2.0)),
]


def f32(values):
    return jnp.asarray(values, jnp.float32)


def test_cosine_is_the_angle_form_of_alpha_and_sigma():
    # alpha = cos(u), sigma = sin(u), u linear from atan(e^-10) to atan(e^10).
    u = np.arctan(np.exp(-10.0)) * (1 - TIMES) + np.arctan(np.exp(10.0)) * TIMES
    expected = 2 * np.log(np.cos(u)) - 2 * np.log(np.sin(u))
    actual = np.asarray(schedules.logsnr_cosine(f32(TIMES)))
    # Rounding of t to float32 moves logsnr by at most 6e-8 |t| * 2 pi / sin(2u); relative to the
    # distance from the end that is a few float32 roundings of a value up to 20.
    np.testing.assert_allclose(actual[:-1], expected[:-1], atol=1e-4)
    np.testing.assert_allclose(actual[[0, -1]], [20.0, -20.0], rtol=1e-6)


def test_cosine_is_odd_about_the_middle_so_that_the_noisy_end_is_as_exact_as_the_clean_one():
    t = f32(np.arange(0, 257) / 256.0)  # exact in float32, and so is 1 - t
    logsnr = np.asarray(schedules.logsnr_cosine(t))
    np.testing.assert_array_equal(logsnr[1:128], -logsnr[::-1][1:128])
    assert abs(logsnr[128]) < 1e-6


def test_cosine_gives_the_published_augmentation_levels():
    snr = np.exp(np.asarray(schedules.logsnr_cosine(f32([0.1, 0.2, 0.25, 0.3]))))
    np.testing.assert_allclose(snr, [39.9, 9.5, 5.8, 3.9], atol=0.06)  # printed to one decimal


def test_linear_is_close_to_the_discrete_schedule_of_1000_betas():
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    discrete = np.log(alpha_bar / (1.0 - alpha_bar))
    actual = np.asarray(schedules.logsnr_linear(f32(np.arange(1, 1001) / 1000.0)))
    # A continuous form of a discrete chain: 0.095 apart at the first step, 0.068 at the last.
    assert np.max(np.abs(actual - discrete)) < 0.1
    np.testing.assert_allclose(
        actual[[0, 9, 99, 499, 999]], [9.115, 6.216, 2.157, -2.455, -10.050], atol=6e-4
    )


def test_shift_moves_the_logsnr_and_is_clipped_afterwards():
    t = f32(TIMES)
    plain = np.asarray(schedules.logsnr_cosine(t))
    shifted = np.asarray(schedules.logsnr_shifted_cosine(t, 256, 64))
    # 4x the side: 16x the pixels in a box mean, so the SNR falls by 16.
    np.testing.assert_allclose(shifted, np.maximum(plain - np.log(16.0), -20.0), atol=1e-5)
    assert shifted[0] == pytest.approx(20.0 - np.log(16.0), abs=1e-5)
    assert shifted[-1] == -20.0
    np.testing.assert_array_equal(schedules.logsnr_shifted_cosine(t, 64, 64), plain)


def test_normal_has_the_quantiles_of_its_distribution():
    normal = NormalDist(-2.0, 1.5)
    expected = [normal.inv_cdf(1.0 - t) for t in TIMES[1:-1]]
    actual = np.asarray(schedules.logsnr_normal(f32(TIMES), -2.0, 1.5))
    # t = 0.999 is rounded by up to 3e-8, which the slope of the quantile there multiplies by 445.
    np.testing.assert_allclose(actual[1:-1], expected, atol=3e-5)
    np.testing.assert_array_equal(actual[[0, -1]], [20.0, -20.0])


@pytest.mark.parametrize("config", EVERY_SCHEDULE)
def test_every_schedule_is_finite_decreasing_and_clipped_at_every_time(config):
    # With the default train_levels these are those of the schedule.
    schedule = jax.jit(config.train_levels.at(config.schedule.at(256)))
    tiny = np.finfo(np.float32).tiny
    t = f32(np.concatenate([[0.0, tiny, 1e-12, 1e-7], TIMES[1:-1], [1 - 6e-8, 1.0]]))
    logsnr = np.asarray(schedule(t))
    assert logsnr.dtype == np.float32
    assert np.all(np.isfinite(logsnr))
    assert np.all(np.abs(logsnr) <= 20.0)
    assert np.all(np.diff(logsnr) <= 0.0)
    assert logsnr[0] > 15.0 and logsnr[-1] < -9.9
    assert schedule(f32(0.0)).shape == ()  # also one scalar, exactly at the ends
    assert np.isfinite(schedule(f32(1.0)))


def test_alpha_and_sigma_keep_their_precision_at_both_ends():
    logsnr = np.array([-20.0, -10.0, -1.0, 0.0, 3.0, 20.0])
    alpha, sigma = schedules.alpha_sigma(f32(logsnr))
    # A few float32 roundings, relative, also for sigma = 4.5e-5.
    np.testing.assert_allclose(alpha, 1 / np.sqrt(1 + np.exp(-logsnr)), rtol=1e-6)
    np.testing.assert_allclose(sigma, 1 / np.sqrt(1 + np.exp(logsnr)), rtol=1e-6)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="reference=0 must be positive"):
        ShiftedCosine(0)
    with pytest.raises(UserError, match=r"std=0\.0 must be positive"):
        NormalLevels(std=0.0)
    with pytest.raises(UserError, match=r"mean=-20\.0 must be between -20 and 20"):
        NormalLevels(mean=-20.0)
