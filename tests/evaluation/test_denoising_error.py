"""The error of x_hat by noise level, of networks whose error is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import DiffusionConfig, load_config
from imagen_jax.evaluation.denoising_error import LOGSNRS, denoising_error
from imagen_jax.models import init_params
from imagen_jax.stage import open_stage
from imagen_jax.types import TextCond

TEXT_DIM = 8


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def text(number):
    return TextCond(jnp.ones((number, 3, TEXT_DIM)), jnp.ones((number, 3), bool))


def untrained(name, prediction):
    """A stage whose network returns 0, since its head starts at zero."""
    stage = open_stage(load_config("configs/tiny.py"), name, TEXT_DIM)
    diffusion = DiffusionConfig(prediction=prediction)
    stage = stage.replace(dataclasses.replace(stage.config, diffusion=diffusion))
    return stage, init_params(stage.network, jax.random.key(0))


@pytest.mark.parametrize("name", ["base", "sr16"])
def test_an_answer_of_zero_has_the_error_of_its_prediction_type(name, images):
    stage, params = untrained(name, "x")
    side = stage.config.resolution
    errors = denoising_error(stage, params, text(5), images[:, :side, :side], batch_size=2)
    assert list(errors) == [str(level) for level in LOGSNRS]
    expected = np.mean((images[:, :side, :side] / 127.5 - 1) ** 2)
    np.testing.assert_allclose(list(errors.values()), expected, rtol=1e-5)


def test_the_noise_is_what_eps_of_zero_leaves_and_the_batch_size_changes_nothing(images):
    stage, params = untrained("sr16", "eps")
    errors = denoising_error(stage, params, text(5), images, batch_size=5)
    # x_hat = z / alpha, so the error is the noise's own, (sigma / alpha)^2 = exp(-logsnr), whose
    # mean over 3,840 numbers is known to 2.3 %.
    np.testing.assert_allclose(list(errors.values()), np.exp(-np.array(LOGSNRS)), rtol=0.1)
    again = denoising_error(stage, params, text(5), images, batch_size=2)
    # Another batch size is another program, which may add in another order.
    np.testing.assert_allclose(list(again.values()), list(errors.values()), rtol=1e-5)
