"""Loss values against numpy, and their agreement across prediction types."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import DiffusionConfig
from imagen_jax.diffusion import losses, process
from imagen_jax.diffusion.losses import MinSNR, Sigmoid, Unweighted
from imagen_jax.errors import UserError

LOGSNR = np.array([-7.0, -1.0, 0.4, 1.5, 2.0, 5.0], np.float32)
KINDS = ["eps", "v", "x"]
# Weightings of the eps error, "min_snr" also with a power other than 1.
CONVERTED = ["min_snr", "min_snr^0.3", "sigmoid"]
WEIGHTINGS = ["none", *CONVERTED]


def draw(seed):
    return np.random.default_rng(seed).normal(size=(len(LOGSNR), 4, 3, 3)).astype(np.float32)


def make_config(kind, weighting):
    name, _, power = weighting.partition("^")
    weightings = {
        "none": Unweighted(),
        "min_snr": MinSNR(gamma=5.0, power=float(power or 1.0)),
        "sigmoid": Sigmoid(bias=-1.5),
    }
    return DiffusionConfig(prediction=kind, loss_weighting=weightings[name])


def compute_loss(prediction, x, eps, logsnr, config):
    x, eps, logsnr = jnp.asarray(x), jnp.asarray(eps), jnp.asarray(logsnr, jnp.float32)
    return losses.loss_per_example(
        jnp.asarray(prediction), x, eps, logsnr, config.prediction, config.loss_weighting
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_values(kind, weighting):
    x, eps, prediction = (draw(seed).astype(np.float64) for seed in range(3))
    snr = np.exp(LOGSNR.astype(np.float64))
    alpha, sigma = (np.sqrt(v)[:, None, None, None] for v in (snr / (1 + snr), 1 / (1 + snr)))
    true = {"eps": eps, "v": alpha * eps - sigma * x, "x": x}[kind]
    mse = np.mean((prediction - true) ** 2, axis=(1, 2, 3))
    # The published factors for each type (min-SNR: Hang et al.; sigmoid: e^b sigmoid(l - b) on x).
    weight = {
        ("min_snr", "eps"): np.minimum(snr, 5.0) / snr,
        ("min_snr", "v"): np.minimum(snr, 5.0) / (snr + 1),
        ("min_snr", "x"): np.minimum(snr, 5.0),
        ("min_snr^0.3", "eps"): np.minimum(snr, 5.0) ** 0.3 / snr,
        ("min_snr^0.3", "v"): np.minimum(snr, 5.0) ** 0.3 / (snr + 1),
        ("min_snr^0.3", "x"): np.minimum(snr, 5.0) ** 0.3,
        ("sigmoid", "eps"): 1 / (1 + snr * np.exp(1.5)),
        ("sigmoid", "v"): snr / (1 + snr) / (1 + snr * np.exp(1.5)),
        ("sigmoid", "x"): np.exp(-1.5) / (1 + np.exp(-1.5) / snr),
    }.get((weighting, kind), 1.0)
    actual = compute_loss(draw(2), draw(0), draw(1), LOGSNR, make_config(kind, weighting))
    assert actual.shape == (len(LOGSNR),) and actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, weight * mse, rtol=1e-5)  # f32 sum of 36 squares and exp


@pytest.mark.parametrize("weighting", CONVERTED)
def test_networks_that_imply_the_same_picture_have_the_same_loss(weighting):
    x, eps, x_hat = draw(0), draw(1), draw(2)
    z = process.diffuse(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(LOGSNR))
    logsnr = jnp.asarray(LOGSNR)
    predictions = {
        "x": jnp.asarray(x_hat),
        "eps": process.predict_eps(jnp.asarray(x_hat), z, logsnr, "x"),
        "v": process.predict_v(jnp.asarray(x_hat), z, logsnr, "x"),
    }
    values = {
        kind: compute_loss(prediction, x, eps, LOGSNR, make_config(kind, weighting))
        for kind, prediction in predictions.items()
    }
    # eps and v are x_hat over sigma >= 0.08: f32 roundings grow twelvefold.
    np.testing.assert_allclose(values["eps"], values["x"], rtol=2e-5)
    np.testing.assert_allclose(values["v"], values["x"], rtol=2e-5)


def test_none_is_the_error_of_the_networks_own_target_and_so_differs_between_types():
    x, eps, x_hat = draw(0), draw(1), draw(2)
    z = process.diffuse(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(LOGSNR))
    eps_hat = process.predict_eps(jnp.asarray(x_hat), z, jnp.asarray(LOGSNR), "x")
    on_x = compute_loss(x_hat, x, eps, LOGSNR, make_config("x", "none"))
    on_eps = compute_loss(eps_hat, x, eps, LOGSNR, make_config("eps", "none"))
    np.testing.assert_allclose(on_eps / on_x, np.exp(LOGSNR), rtol=2e-5)  # f32, as above


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("level", [-20.0, 20.0])
def test_loss_is_finite_at_both_ends_and_zero_for_a_perfect_network(kind, weighting, level):
    x, eps, logsnr = draw(0), draw(1), np.full(len(LOGSNR), level, np.float32)
    config = make_config(kind, weighting)
    assert np.all(np.isfinite(compute_loss(draw(2), x, eps, logsnr, config)))
    perfect = process.target(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(logsnr), kind)
    np.testing.assert_array_equal(compute_loss(perfect, x, eps, logsnr, config), np.zeros(6))


@pytest.mark.parametrize("level", [-20.0, -8.0, 8.0, 20.0])
@pytest.mark.parametrize("weighting", CONVERTED)
def test_weights_convert_by_the_snr_up_to_both_ends(weighting, level):
    logsnr = jnp.full((1,), level)
    weight = {
        kind: float(
            losses.loss_weight(logsnr, kind, make_config(kind, weighting).loss_weighting)[0]
        )
        for kind in KINDS
    }
    # The exponent carries the f32 rounding of numbers up to 40.
    assert weight["x"] / weight["eps"] == pytest.approx(np.exp(level), rel=1e-5)
    assert weight["v"] / weight["eps"] == pytest.approx(1 / (1 + np.exp(-level)), rel=1e-5)


def test_a_bf16_prediction_is_scored_in_float32():
    x, eps, prediction = draw(0), draw(1), jnp.asarray(draw(2), jnp.bfloat16)
    config = make_config("eps", "none")
    rounded = np.asarray(prediction.astype(jnp.float32))
    np.testing.assert_array_equal(
        compute_loss(prediction, x, eps, LOGSNR, config),
        compute_loss(rounded, x, eps, LOGSNR, config),
    )


def test_unknown_names_and_values_are_refused():
    with pytest.raises(UserError, match="'noise'"):
        losses.loss_per_example(draw(0), draw(0), draw(1), jnp.asarray(LOGSNR), "noise")
    with pytest.raises(UserError, match="'noise'"):
        DiffusionConfig(prediction="noise")
    with pytest.raises(UserError, match=r"gamma=0\.0"):
        MinSNR(gamma=0.0)
    with pytest.raises(UserError, match=r"power=1\.5"):
        MinSNR(power=1.5)
