"""Thresholding against the pseudo-code of Fig. A.31 in numpy, percentiles against jnp."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.thresholding import (
    DynamicThreshold,
    NoThreshold,
    StaticThreshold,
    percentile_of_magnitude,
)
from imagen_jax.errors import UserError


def draw(shape=(4, 6, 5, 3), scale=3.0, seed=0):
    scales = scale * np.linspace(0.1, 1.0, shape[0])[:, None, None, None]
    return (np.random.default_rng(seed).normal(size=shape) * scales).astype(np.float32)


def figure_a31(x0_t, p):
    """The paper's pseudo-code, with its `jnp.max(s, 1.0)` corrected to a maximum."""
    s = np.percentile(np.abs(x0_t), p, axis=tuple(range(1, x0_t.ndim)))
    s = np.maximum(s, 1.0).reshape(-1, 1, 1, 1)
    return np.clip(x0_t, -s, s) / s


@pytest.mark.parametrize("p", [50.0, 90.0, 99.5, 100.0])
def test_dynamic_is_the_papers_pseudo_code(p):
    x_hat = draw()
    expected = figure_a31(x_hat.astype(np.float64), p)
    # The position p (n - 1) is float32 here: 1e-5 of a gap between neighbours, plus rounding.
    np.testing.assert_allclose(DynamicThreshold(p)(jnp.asarray(x_hat)), expected, atol=2e-5)


def test_dynamic_leaves_a_picture_in_range_alone_and_scales_each_image_by_itself():
    x_hat = draw()
    x_hat[0] = np.clip(x_hat[0], -0.9, 0.9)
    result = np.asarray(DynamicThreshold(99.5)(jnp.asarray(x_hat)))
    np.testing.assert_array_equal(result[0], x_hat[0])
    assert np.max(np.abs(result)) == 1.0
    alone = DynamicThreshold(99.5)(jnp.asarray(x_hat[2:3]))
    np.testing.assert_array_equal(result[2:3], alone)


def test_static_clips_and_none_does_nothing():
    x_hat = jnp.asarray(draw())
    np.testing.assert_array_equal(StaticThreshold()(x_hat), np.clip(draw(), -1.0, 1.0))
    np.testing.assert_array_equal(NoThreshold()(x_hat), draw())


def test_the_cap_bounds_the_scale():
    x_hat = draw()
    s = np.percentile(np.abs(x_hat), 99.5, axis=(1, 2, 3))
    assert s.min() < 1.5 < s.max()
    s = np.clip(s, 1.0, 1.5).reshape(-1, 1, 1, 1)
    result = DynamicThreshold(99.5, 1.5)(jnp.asarray(x_hat))
    np.testing.assert_allclose(result, np.clip(x_hat, -s, s) / s, atol=2e-5)  # f32 position
    static = DynamicThreshold(99.5, 1.0)(jnp.asarray(x_hat))
    np.testing.assert_array_equal(static, np.clip(x_hat, -1.0, 1.0))


def test_settings_may_be_traced_without_changing_the_result():
    x_hat = jnp.asarray(draw())
    traced = jax.jit(lambda x, p, cap: DynamicThreshold(p, cap)(x))
    for p, cap in [(99.5, 0.0), (95.0, 1.5), (100.0, 0.0)]:
        # jit may fuse the interpolation into multiply-adds: one rounding.
        np.testing.assert_allclose(
            traced(x_hat, p, cap), DynamicThreshold(p, cap)(x_hat), atol=1e-6
        )


MAGNITUDES = {
    "one pixel": np.array([[0.7], [3.0]]),
    "two pixels": np.array([[2.0, 0.5], [0.0, 0.0]]),
    "constant": np.full((2, 30), 1.7),
    "zeros": np.zeros((1, 12)),
    "ties at the top": np.array([[1.0] * 50 + [2.0] * 50 + [3.0] * 2]),
    "wide range": np.array([[0.0, 1e-38, 1e-20, 1.0, 1e20, 3e38]]),
    "denormal": np.array([[1e-45, 1e-42, 1e-40, 0.0]]),
    "odd length": np.abs(np.random.default_rng(1).normal(size=(3, 1237))),
    "image": np.abs(np.random.default_rng(2).normal(size=(2, 32 * 32 * 3))),
    "rounded values": np.round(np.abs(np.random.default_rng(3).normal(size=(2, 999))), 1),
}


@pytest.mark.parametrize("name", list(MAGNITUDES))
def test_percentile_is_that_of_jnp(name):
    magnitude = np.asarray(MAGNITUDES[name], np.float32)
    n = magnitude.shape[1]
    ordered = np.sort(magnitude, axis=1)
    compute = jax.jit(percentile_of_magnitude)
    for p in [0.0, 1.5, 33.3, 50.0, 90.0, 99.5, 99.99, 100.0]:
        actual = compute(magnitude, p)
        expected = jnp.percentile(magnitude, jnp.float32(p), axis=1)
        # The position p (n - 1) / 100 is rounded by a few float32 units, and compilers round it in
        # different orders: that share of the gaps beside it. Then one rounding of the result, and
        # denormal numbers may be flushed to zero.
        k = int(p / 100 * (n - 1))
        gap = ordered[:, min(k + 2, n - 1)] - ordered[:, max(k - 1, 0)]
        error = np.abs(np.asarray(actual, np.float64) - np.asarray(expected))
        assert np.all(error <= 4e-7 * n * gap + 3e-7 * np.asarray(expected) + 1e-37)


@pytest.mark.parametrize("rank", [0, 1, 250, 498, 499, 500])
def test_percentile_at_an_order_statistic_is_exact(rank):
    magnitude = np.abs(np.random.default_rng(4).normal(size=(3, 501))).astype(np.float32)
    magnitude[1, :200] = magnitude[1, 0]
    # rank / 5 percent of 500 gaps is a whole number, for these ranks in float32 too.
    with jax.disable_jit(rank not in (0, 500)):  # compiled, the position may be a unit off
        actual = percentile_of_magnitude(jnp.asarray(magnitude), rank / 5.0)
    expected = np.sort(magnitude, axis=1)[:, rank]
    np.testing.assert_array_equal(actual, expected)


def test_percentile_100_is_the_maximum_at_every_length():
    values = np.abs(np.random.default_rng(5).normal(size=(1, 200))).astype(np.float32)
    for n in [3, 7, 48, 50, 58, 101, 115, 116, 200]:
        row = values[:, :n]
        np.testing.assert_allclose(
            percentile_of_magnitude(row, 100.0), row.max(axis=1), rtol=1e-4
        )  # finite, and at most a float32 unit of the position below the maximum


def test_percentile_of_non_finite_rows():
    magnitude = jnp.array([[1.0, 2.0, jnp.inf], [jnp.nan, 1.0, 2.0], [1.0, 2.0, 3.0]])
    actual = percentile_of_magnitude(magnitude, 100.0)
    np.testing.assert_array_equal(actual, [np.inf, np.nan, 3.0])
    np.testing.assert_array_equal(percentile_of_magnitude(magnitude, 50.0), [2.0, np.nan, 2.0])


def test_percentile_works_under_vmap_and_scan():
    magnitude = jnp.abs(jnp.asarray(draw().reshape(4, -1)))
    ps = jnp.array([50.0, 99.5])
    mapped = jax.vmap(functools.partial(percentile_of_magnitude, magnitude))(ps)
    _, scanned = jax.lax.scan(lambda c, p: (c, percentile_of_magnitude(magnitude, p)), None, ps)
    expected = np.stack([np.percentile(np.asarray(magnitude), p, axis=1) for p in (50.0, 99.5)])
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)  # f32 position between neighbours
    np.testing.assert_allclose(scanned, expected, rtol=1e-5)


@pytest.mark.parametrize("p", [0.995, 1.0, 0.0, -5, 100.1, float("nan")])
def test_a_percentile_that_is_not_in_percent_is_refused(p):
    with pytest.raises(UserError, match="in percent"):
        DynamicThreshold(p)


def test_a_cap_below_one_is_refused():
    with pytest.raises(UserError, match=r"cap=0\.5"):
        DynamicThreshold(99.5, 0.5)
