"""The ladder of noise levels against posteriors in closed form, and once on shipped weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import noise_ladder
from imagen_jax.diffusion import samplers, schedules
from imagen_jax.sampling.loop import picture_keys


@pytest.fixture(scope="module")
def grid():
    return np.asarray(jax.vmap(schedules.logsnr_cosine)(samplers.time_grid(512)))


def keys_of(number):
    return picture_keys(np.arange(number, dtype=np.uint32), 0)


def test_who_knows_the_truth_loses_nothing_at_any_level(grid):
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1.0)
    for start in (0, 256, 500, 512):
        drawn = noise_ladder.draw_from(lambda z, logsnr: x, x, keys_of(4), grid[start:], 0.2)
        np.testing.assert_array_equal(drawn, x)


@pytest.mark.parametrize("level", [-2.0, 0.0, 2.0])
def test_pixels_of_a_gaussian_are_forgotten_as_far_as_the_noise_hides_them(grid, level):
    """With the exact posterior mean what is drawn is a sample of p(x | z), so that its covariance
    with x is that of two samples: the variance that z explains."""
    variance = 0.25
    x = math.sqrt(variance) * jax.random.normal(jax.random.key(2), (64, 16, 16, 3))

    def denoise(z, logsnr):
        alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr))
        return z * alpha * variance / (alpha**2 * variance + sigma**2)

    start = int(np.argmin(np.abs(grid - level)))
    drawn = noise_ladder.draw_from(denoise, x, keys_of(64), grid[start:], 0.0)
    signal = variance * math.exp(grid[start])
    # 49,152 pixels: a standard error of at most 0.005 for the one and 0.6 % for the other; with
    # gamma = 0 the variance falls short by 600 % over the number of steps (4.7 % with 128).
    assert float(jnp.mean(drawn * x)) / variance == pytest.approx(signal / (1 + signal), abs=0.025)
    assert float(jnp.mean(drawn**2)) == pytest.approx(variance, rel=0.03)


@pytest.mark.slow
def test_shipped_shapes_lose_more_the_earlier_they_start():
    rows = list(noise_ladder.ladder("imagen_jax/weights/shapes", 8, [math.inf, 4.0, -4.0]))
    assert [row["logsnr"] for row in rows] == [
        math.inf,
        pytest.approx(3.8, abs=0.1),
        pytest.approx(-4.0, abs=0.3),
    ]
    assert rows[0]["mse"] == 0.0 < rows[1]["mse"] < rows[2]["mse"]
    # From true small pictures the second stage draws nine of ten of all kinds acceptably.
    assert rows[0]["accepted"] >= 0.75


@pytest.mark.parametrize(
    "directory, message",
    [
        ("nowhere", "no weights in nowhere"),
        ("imagen_jax/weights/emoji", "imagen_jax/weights/emoji draws emoji; only shapes"),
    ],
)
def test_what_cannot_be_climbed_is_one_message(directory, message, capsys):
    assert noise_ladder.main([directory]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
