"""The denoiser: guidance, prediction types and thresholds meet as in the paper."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.denoiser import LowRes, Outputs, make_denoiser, make_network_fn, network_denoiser
from imagen_jax.diffusion.guidance import Guidance, OscillatingWeight
from imagen_jax.diffusion.process import diffuse, target
from imagen_jax.diffusion.thresholding import DynamicThreshold, StaticThreshold
from imagen_jax.models import apply_network, project_text
from imagen_jax.stage import open_stage
from imagen_jax.types import TextCond, null_text

TEXT_DIM = 6
LOGSNR = jnp.array([-3.0, 0.5, 2.0])
OSCILLATING = Guidance(3.0, schedule=OscillatingWeight(0.25))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("prediction", ["eps", "v", "x"])
def test_the_true_output_gives_the_clean_picture(prediction):
    x, eps = jnp.tanh(normal(0, 3, 4, 4, 3)), normal(1, 3, 4, 4, 3)
    output = target(x, eps, LOGSNR, prediction)
    denoise = make_denoiser(lambda z, logsnr: Outputs(output), prediction)
    x_hat = denoise(diffuse(x, eps, LOGSNR), LOGSNR).x_hat
    # At log-SNR -3 an error of float32 in eps is divided by alpha = 0.22.
    np.testing.assert_allclose(x_hat, x, atol=5e-6)


def test_guidance_moves_away_from_the_output_of_a_second_network():
    """Autoguidance needs no more than another reference."""
    z = normal(0, 3, 4, 4, 3)

    def network_fn(z, logsnr):
        return Outputs(jnp.tanh(z), 0.5 * jnp.tanh(z))

    x_hat = make_denoiser(network_fn, "x", guidance=Guidance(2.5))(z, LOGSNR).x_hat
    np.testing.assert_allclose(x_hat, 2.5 * np.tanh(z) - 1.5 * 0.5 * np.tanh(z), rtol=1e-5)
    plain = make_denoiser(network_fn, "x", guidance=Guidance(1.0))(z, LOGSNR).x_hat
    np.testing.assert_array_equal(plain, jnp.tanh(z))


def test_an_interval_acts_where_the_noise_level_lies_in_it():
    z = normal(0, 3, 2, 2, 3)

    def network_fn(z, logsnr):
        return Outputs(z, jnp.zeros_like(z))

    guidance = Guidance(3.0, interval=(0.5, 20.0))
    x_hat = make_denoiser(network_fn, "x", guidance=guidance)(z, LOGSNR).x_hat
    np.testing.assert_allclose(x_hat, np.array([1, 3, 3])[:, None, None, None] * z, rtol=1e-6)


@pytest.mark.parametrize("guidance", [Guidance(3.0, interval=(-1.0, 1.0)), OSCILLATING])
def test_the_network_runs_without_references_where_nothing_is_guided(guidance):
    """A network that counts its rows: 2 B where there is guidance, B elsewhere."""
    rows, grid = [], jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    z = normal(0, 3, 2, 2, 3)

    def network_fn(z, logsnr):
        both = jnp.concatenate([z, jnp.zeros_like(z)])
        jax.debug.callback(lambda both: rows.append(len(both)), both, ordered=True)
        return Outputs(both[: len(z)], both[len(z) :])

    def unguided_fn(z, logsnr):
        jax.debug.callback(lambda z: rows.append(len(z)), z, ordered=True)
        return Outputs(z)

    @jax.jit
    def draw(z, guidance):
        denoise = make_denoiser(
            network_fn, "x", guidance=guidance, unguided_fn=unguided_fn, grid=grid
        )

        def step(_, logsnr):
            return None, denoise(z, jnp.full(3, logsnr)).x_hat

        return jax.lax.scan(step, None, grid[:-1])[1]

    pictures = draw(z, guidance.without_idle_parts())
    jax.block_until_ready(pictures)
    jax.effects_barrier()
    guided = [rows_of == 6 for rows_of in rows]
    # At -2 and 1 the interval is over; of four steps the first is constant, then they alternate.
    expected = [False, True, True, False] if guidance is not OSCILLATING else [1, 0, 1, 0]
    assert guided == expected, rows
    for picture, acts in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(picture, (3.0 if acts else 1.0) * z, rtol=1e-6)


def test_text_guidance_and_autoguidance_add_up():
    z = normal(0, 3, 4, 4, 3)
    text, guide = normal(1, 3, 4, 4, 3), normal(2, 3, 4, 4, 3)
    guidance = Guidance(2.5, guide_weight=1.5)

    def x_hat(guidance, reference, guide):
        outputs = Outputs(z, reference, guide)
        return make_denoiser(lambda z, logsnr: outputs, "x", guidance=guidance)(z, LOGSNR).x_hat

    both = x_hat(guidance, text, guide)
    np.testing.assert_allclose(both, z + 1.5 * (z - text) + 0.5 * (z - guide), atol=2e-6)
    alone = x_hat(dataclasses.replace(guidance, weight=1.0), text, guide)
    np.testing.assert_allclose(alone, z + 0.5 * (z - guide), atol=2e-6)
    np.testing.assert_allclose(x_hat(guidance, text, None), z + 1.5 * (z - text), atol=2e-6)
    # A guide that predicts the same changes nothing.
    np.testing.assert_array_equal(x_hat(guidance, text, z), x_hat(guidance, text, None))


@pytest.mark.parametrize("prediction", ["eps", "v", "x"])
def test_rescaling_and_projection_work_on_x_hat(prediction):
    z, references = normal(0, 3, 4, 4, 3), (normal(1, 3, 4, 4, 3), normal(2, 3, 4, 4, 3))
    denoise = make_denoiser(lambda z, logsnr: Outputs(references[0]), prediction)
    x_hat = denoise(z, LOGSNR).x_hat
    guided = make_denoiser(
        lambda z, logsnr: Outputs(*references), prediction, guidance=Guidance(5.0, rescale=1.0)
    )(z, LOGSNR).x_hat
    # Values up to 100: rounding of sums of 48 squares.
    np.testing.assert_allclose(np.std(guided, (1, 2, 3)), np.std(x_hat, (1, 2, 3)), rtol=1e-5)
    update = (
        make_denoiser(
            lambda z, logsnr: Outputs(*references), prediction, guidance=Guidance(5.0, parallel=0.0)
        )(z, LOGSNR).x_hat
        - x_hat
    )
    along = np.sum(np.float64(update) * x_hat, (1, 2, 3))
    size = np.linalg.norm(np.float64(update).reshape(3, -1), axis=1)
    assert (size > 1).all()
    lengths = size * np.linalg.norm(np.float64(x_hat).reshape(3, -1), axis=1)
    np.testing.assert_allclose(along / lengths, 0.0, atol=1e-6)  # float32


def test_the_threshold_comes_after_guidance():
    z = jnp.full((1, 2, 2, 3), 0.6)

    def network_fn(z, logsnr):
        return Outputs(z, jnp.zeros_like(z))

    for threshold in (StaticThreshold(), DynamicThreshold(100.0)):
        denoise = make_denoiser(network_fn, "x", guidance=Guidance(3.0), threshold=threshold)
        np.testing.assert_allclose(denoise(z, jnp.zeros(1)).x_hat, 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["base", "sr16"])
def test_a_networks_outputs_with_and_without_text(name, tiny_config, random_params):
    stage = open_stage(tiny_config, name, TEXT_DIM)
    params = random_params(stage, seed=3)
    side = stage.config.resolution
    mask = np.arange(4)[None] < np.array([[1], [4], [2]])
    text = TextCond(normal(2, 3, 4, TEXT_DIM) * mask[:, :, None], jnp.asarray(mask))
    z, condition, low_res = normal(3, 3, side, side, 3), {}, None
    if stage.factor:
        low_res = LowRes(normal(4, 3, side, side, 3), jnp.array([0.1, 0.5, 0.9]))
        condition = {"low_res": low_res.image, "aug_level": low_res.aug_level}

    def plainly(text):
        features = project_text(stage.network, params, text)
        return apply_network(stage.network, params, z, LOGSNR, features, **condition)

    outputs = make_network_fn(stage.network, params, text, low_res, with_null_text=True)(z, LOGSNR)
    # Another batch size is another program, which may add in another order.
    np.testing.assert_allclose(outputs.conditional, plainly(text), atol=1e-4)
    np.testing.assert_allclose(outputs.reference, plainly(null_text(text)), atol=1e-4)
    alone = make_network_fn(stage.network, params, text, low_res)(z, LOGSNR)
    assert alone.reference is None
    np.testing.assert_allclose(alone.conditional, plainly(text), atol=1e-4)
    x_hat = network_denoiser(stage.network, params, text, "x", low_res, guidance=Guidance(2.0))(
        z, LOGSNR
    ).x_hat
    np.testing.assert_allclose(x_hat, 2 * outputs.conditional - outputs.reference, atol=1e-4)
