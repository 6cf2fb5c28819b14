"""Classifier-free guidance in the paper's convention, w = 1 is off."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import process
from imagen_jax.diffusion.guidance import guide


def draw(seed):
    return jax.random.normal(jax.random.key(seed), (3, 2, 4, 3))


def test_weight_one_is_exactly_the_conditional_and_zero_the_unconditional():
    conditional, unconditional = draw(0), draw(1)
    np.testing.assert_array_equal(guide(conditional, unconditional, 1.0), conditional)
    np.testing.assert_array_equal(guide(conditional, unconditional, 0.0), unconditional)


def test_weight_three_goes_two_differences_beyond_the_conditional():
    conditional, unconditional = np.asarray(draw(0)), np.asarray(draw(1))
    expected = conditional + 2.0 * (conditional - unconditional)
    np.testing.assert_allclose(
        guide(draw(0), draw(1), 3.0), expected, atol=3e-6
    )  # f32 rounding of values up to 15


def test_weight_may_be_traced_and_one_per_image():
    w = jnp.array([1.0, 1.35, 8.0])
    guided = jax.jit(guide)(draw(0), draw(1), w)
    for b in range(3):
        one = guide(draw(0)[b : b + 1], draw(1)[b : b + 1], float(w[b]))
        np.testing.assert_allclose(guided[b], one[0], atol=1e-5)  # fused multiply-adds, values < 40


def test_guiding_eps_and_guiding_v_draw_the_same_picture():
    z, logsnr = draw(2), jnp.array([-3.0, 0.0, 3.0])
    x_guided = guide(draw(0), draw(1), 5.0)
    for kind, predict in (("eps", process.predict_eps), ("v", process.predict_v)):
        conditional = predict(draw(0), z, logsnr, "x")
        unconditional = predict(draw(1), z, logsnr, "x")
        x_hat = process.predict_x(guide(conditional, unconditional, 5.0), z, logsnr, kind)
        # alpha, sigma >= 0.2: roundings of guided values up to some 100 grow fivefold.
        np.testing.assert_allclose(x_hat, x_guided, atol=2e-4)
