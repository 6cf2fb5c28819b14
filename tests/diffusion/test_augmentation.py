"""Resizing and conditioning noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import augmentation
from imagen_jax.diffusion import resize as resizing
from imagen_jax.errors import UserError


def draw(h, w, batch_size=2, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch_size, h, w, 3)).astype(np.float32)


def bilinear_f64(x, height, width):
    """Half-pixel bilinear enlargement, pixel by pixel."""

    def weights(size, old_size):
        matrix = np.zeros((size, old_size))
        for i in range(size):
            centre = (i + 0.5) * old_size / size - 0.5
            low = int(np.floor(centre))
            for j, weight in ((low, low + 1 - centre), (low + 1, centre - low)):
                matrix[i, min(max(j, 0), old_size - 1)] += weight
        return matrix

    return np.einsum("ih,bhwc,jw->bijc", weights(height, x.shape[1]), x, weights(width, x.shape[2]))


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
def test_downsample_is_the_mean_of_boxes(factor):
    x = draw(12, 6)
    expected = np.zeros((2, 12 // factor, 6 // factor, 3))
    for i in range(12 // factor):
        for j in range(6 // factor):
            box = x[:, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            expected[:, i, j] = box.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(resizing.downsample(x, factor), expected, atol=1e-6)  # f32 sums


def test_crop_then_down_is_down_then_crop():
    x = jnp.asarray(draw(32, 32))
    crop_then_down = resizing.downsample(x[:, 8:24, 4:20], 4)
    down_then_crop = resizing.downsample(x, 4)[:, 2:6, 1:5]
    np.testing.assert_array_equal(crop_then_down, down_then_crop)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 2)])
def test_upsample_is_half_pixel_bilinear(factor, size):
    x = draw(*size)
    height, width = size[0] * factor, size[1] * factor
    actual = resizing.upsample(jnp.asarray(x), factor)
    np.testing.assert_allclose(actual, bilinear_f64(x, height, width), atol=1e-6)  # f32 rounding
    by_jax = jax.image.resize(x, (2, height, width, 3), "bilinear")
    np.testing.assert_allclose(actual, by_jax, atol=1e-6)


@pytest.mark.parametrize("height, width", [(5, 7), (24, 4), (9, 18), (6, 6), (12, 12), (20, 3)])
def test_resize_treats_each_axis_by_its_own_rule(height, width):
    x = draw(12, 12)
    actual = resizing.resize(jnp.asarray(x), height, width)
    assert actual.shape == (2, height, width, 3)

    def along(x, size, axis):
        if 12 % size == 0:
            parts = np.split(x, size, axis=axis)
            return np.concatenate([p.mean(axis=axis, keepdims=True) for p in parts], axis=axis)
        shape = list(x.shape)
        shape[axis] = size
        return np.asarray(jax.image.resize(x, shape, "linear", antialias=True))

    np.testing.assert_allclose(actual, along(along(x, height, 1), width, 2), atol=1e-6)


def test_resize_keeps_the_range_and_flat_pictures():
    flat = jnp.full((1, 10, 10, 3), 0.3)
    for size in [(5, 5), (7, 7), (20, 40), (13, 10)]:
        np.testing.assert_allclose(
            resizing.resize(flat, *size), np.full((1, *size, 3), 0.3), atol=1e-6
        )
        image = resizing.resize(jnp.asarray(np.sign(draw(10, 10))), *size)
        assert np.max(np.abs(image)) <= 1.0 + 1e-6


def test_level_zero_returns_the_clean_picture_exactly():
    low_res, eps = jnp.asarray(draw(4, 4, 3)), jnp.asarray(draw(4, 4, 3, seed=1))
    noisy = augmentation.noise_low_res(low_res, jnp.array([0.0, 0.2, 1.0]), eps)
    np.testing.assert_array_equal(noisy[0], low_res[0])
    assert not np.array_equal(noisy[1], low_res[1])
    np.testing.assert_array_equal(augmentation.noise_low_res(low_res, 0.0, eps), low_res)


def test_levels_follow_the_cosine_schedule_per_example():
    low_res, eps = draw(4, 4, 4), draw(4, 4, 4, seed=1)
    levels = np.array([1e-3, 0.1, 0.5, 1.0])
    angle = np.arctan(np.exp(-10.0)) + levels * (np.arctan(np.exp(10.0)) - np.arctan(np.exp(-10.0)))
    angle = angle[:, None, None, None]
    expected = np.cos(angle) * low_res + np.sin(angle) * eps
    noisy = augmentation.noise_low_res(
        jnp.asarray(low_res), jnp.asarray(levels, jnp.float32), jnp.asarray(eps)
    )
    np.testing.assert_allclose(noisy, expected, atol=2e-6)  # f32 rounding of O(1)
    np.testing.assert_allclose(noisy[3], eps[3], atol=1e-4)  # alpha is 4.5e-5 at level 1


def test_impossible_sizes_are_refused():
    x = jnp.zeros((1, 10, 12, 3))
    for factor in (0, 3, 7):
        with pytest.raises(UserError, match=f"reduced by {factor}"):
            resizing.downsample(x, factor)
    with pytest.raises(UserError, match="enlarged by 0"):
        resizing.upsample(x, 0)
    with pytest.raises(UserError, match="resized to 0x4"):
        resizing.resize(x, 0, 4)
