"""The estimator that knows the program that draws: exact in little noise, cautious in much."""

import math

import numpy as np
import pytest

from benchmarks import error_floor
from benchmarks.denoising_error import held_out_scenes
from imagen_jax.data.builtin.shapes import render


@pytest.fixture(scope="module")
def scenes():
    found, _, x = held_out_scenes(3, 32, kind="single")
    eps = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    return found, np.asarray(x), eps


def test_regions_part_the_picture_and_outlines_are_where_pixels_are_mixed(scenes):
    for picture in scenes[1]:
        parts = error_floor.regions(picture)
        assert (np.sum(list(parts.values()), axis=0) == 1).all()
        assert len(np.unique(picture[parts["background"]], axis=0)) == 1
        # But for single pixels of concave corners.
        colours, counts = np.unique(picture[parts["inside"]], axis=0, return_counts=True)
        assert len(colours) == 0 or counts.max() >= 0.9 * counts.sum()


def test_a_pose_draws_the_scene_that_it_was_taken_from(scenes):
    for scene in scenes[0]:
        item = scene.objects[0]
        pose = np.array([[item.x, item.y, item.radius, item.angle]])
        assert error_floor.possible(pose, item.size).all()
        drawn = error_floor.draw(scene, pose, 32)[0]
        np.testing.assert_allclose((drawn + 1) * 127.5, render(scene, 32), atol=1e-4)


def test_prior_poses_are_ones_that_can_be_drawn():
    poses = error_floor.prior_poses("large", np.random.default_rng(0))
    assert error_floor.possible(poses, "large").all()
    assert not error_floor.possible(poses, "small").any()
    assert not error_floor.possible(poses + np.array([0, 0, 0, math.pi]), "large").any()


def test_the_estimate_is_exact_without_noise_and_the_mean_of_the_prior_in_noise(scenes):
    found, x, eps = scenes
    errors = error_floor.floor(found, x, eps)
    assert errors[2].mean() < 0.001 < errors[-1].mean() < errors[-5].mean()
    scene = found[0]
    poses = error_floor.prior_poses(scene.objects[0].size, np.random.default_rng(0))
    prior = poses, error_floor.draw(scene, poses, 32)
    # In noise alone every pose is as likely as before: only the resampling (400 poses) differs.
    mean = error_floor.posterior_mean(eps[0], -20.0, prior, scene, seed=0)
    assert np.abs(mean - prior[1].mean(0)).mean() < 0.05
    far = np.square(prior[1].mean(0) - x[0]).mean()
    assert errors[-1][0].mean() < 0.3 * far


def test_the_integral_of_the_excess_is_the_divergence_of_gaussians():
    # The truth has variance s, the estimator believes q: both errors and the divergence are known.
    s, q, size = 0.7, 0.2, 5
    levels = np.linspace(-14.0, 14.0, 2001)
    nats = []
    for level in levels:
        snr = math.exp(level)
        gain = q * snr / (1.0 + q * snr)
        error = (1.0 - gain) ** 2 * s + gain**2 / snr
        nats.append(error_floor.excess_nats(error, s / (1.0 + s * snr), level, size))
    divergence = 0.5 * size * (s / q - 1.0 - math.log(s / q))
    # 1e-5 of it lies beyond log-SNR +-14.
    assert np.trapezoid(nats, levels) == pytest.approx(divergence, rel=1e-4)
