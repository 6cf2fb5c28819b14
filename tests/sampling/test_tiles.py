"""Overlapping tiles: their layout, their weights, and what is drawn in them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import SampleConfig
from imagen_jax.denoiser import LowRes
from imagen_jax.diffusion.samplers import Prediction
from imagen_jax.diffusion.thresholding import DynamicThreshold, NoThreshold
from imagen_jax.errors import UserError
from imagen_jax.sampling import loop
from imagen_jax.sampling.tiles import Tiles, stage_tiles, tiled_denoiser
from imagen_jax.stage import open_stage
from imagen_jax.types import TextCond

LAYOUTS = [(8, 2, 1), (8, 0, 4), (12, 7, 4), (16, 4, 4), (16, 15, 1)]


@pytest.mark.parametrize(("side", "overlap", "unit"), LAYOUTS)
@pytest.mark.parametrize("length", [8, 16, 20, 48, 100])
def test_layout(side, overlap, unit, length):
    length = length // unit * unit
    tiles = Tiles(side, overlap, unit)
    positions = tiles.positions(length)
    window = min(side, length)
    assert positions[0] == 0 and positions[-1] + window == length
    assert all(position % unit == 0 for position in positions)
    assert all(0 < b - a <= side - overlap for a, b in itertools.pairwise(positions))
    total = np.zeros(length)
    for start, row in zip(positions, tiles.weights(length), strict=True):
        assert (row > 0).all()
        total[start : start + window] += row
    np.testing.assert_allclose(total, 1.0, rtol=3e-7)  # float32: a few windows a pixel
    assert len(positions) == 1 or overlap == 0 or tiles.weights(length).min() < 0.6


def blended(tiles, shape, x_hat_of, threshold=NoThreshold()):
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
    condition = LowRes(jnp.asarray(rng.normal(size=z.shape), jnp.float32), jnp.zeros(2))
    seen = []

    def make(condition):
        def denoise(z, logsnr):
            seen.append(z.shape[1:3])
            return Prediction(x_hat_of(z, logsnr, condition))

        return denoise

    logsnr = jnp.float32([0.3, -1.0])
    tiled = jax.jit(tiled_denoiser(make, condition, threshold, tiles, shape))(z, logsnr).x_hat
    whole = threshold(x_hat_of(z, logsnr, condition))
    return np.asarray(tiled), np.asarray(whole), set(seen)


def pointwise(z, logsnr, condition):
    return jnp.sin(3 * z) + logsnr[:, None, None, None] * condition.image


@pytest.mark.parametrize("shape", [(16, 40), (8, 24), (64, 16), (4, 12)])
def test_a_pointwise_denoiser_is_the_same_in_tiles(shape):
    for threshold in (NoThreshold(), DynamicThreshold(percentile=90.0)):
        tiled, whole, seen = blended(Tiles(8, 4, 2), shape, pointwise, threshold)
        np.testing.assert_allclose(tiled, whole, atol=2e-6)  # float32 sums of up to four windows
        assert seen == {(min(8, shape[0]), 8)}


def test_a_denoiser_that_looks_around_is_not():
    tiled, whole, _ = blended(
        Tiles(8, 4, 2), (16, 16), lambda z, t, c: z - z.mean((1, 2))[:, None, None]
    )
    assert np.abs(tiled - whole).max() > 0.1


@pytest.fixture(scope="module")
def sr(tiny_config, random_params):
    stage = open_stage(tiny_config, "sr16", 6)
    rng = np.random.default_rng(0)
    text = TextCond(jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32), jnp.ones((2, 3), bool))
    low_res = jnp.asarray(rng.uniform(-1, 1, (2, 8, 20, 3)), jnp.float32)
    return stage, random_params(stage, seed=3), text, low_res


def draw(sr, tiles, columns=20):
    stage, params, text, low_res = sr
    return np.asarray(
        loop.sample_stage(
            stage,
            params,
            text,
            loop.picture_keys(np.uint32([3, 4]), 1),
            loop.make_settings(SampleConfig(num_steps=3)),
            low_res[:, :, :columns],
            (16, 2 * columns),
            tiles=tiles,
        )
    )


@pytest.mark.slow
def test_one_tile_is_the_whole_bit_for_bit(sr):
    stage = sr[0]
    whole = draw(sr, None)
    np.testing.assert_array_equal(draw(sr, stage_tiles(stage, 40)), whole)
    tiled = draw(sr, stage_tiles(stage, 16, 8))
    assert tiled.shape == whole.shape and np.isfinite(tiled).all()
    assert np.abs(tiled - whole).max() > 1e-3  # group norms see a window only


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [
        (12, None, "tile=12: stage 'sr16' was trained on pictures of 16 pixels"),
        (0, None, "tile=0"),
        (18, None, "tile=18 must be a multiple of 4.*16 or 20"),
        (16, 16, "tile_overlap=16 must be at most 12"),
        (16, 40, "tile_overlap=40 must be at most 12"),
        (16, -1, "tile_overlap=-1 must be at least 0"),
    ],
)
def test_tiles_that_do_not_fit(sr, side, overlap, message):
    with pytest.raises(UserError, match=message):
        stage_tiles(sr[0], side, overlap)
