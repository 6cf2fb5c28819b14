"""Classifier-free guidance in the paper's convention, w = 1 is off."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process
from imagen_jax.diffusion.guidance import (
    ConstantWeight,
    CosineWeight,
    Guidance,
    LinearWeight,
    OscillatingWeight,
    guide,
    rescaled,
)
from imagen_jax.errors import UserError


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


def combined(guidance, conditional, *references):
    guidance = guidance.without_idle_parts()
    return guidance.combine(conditional, list(references), None)


def norms(x):
    return np.linalg.norm(np.float64(x).reshape(len(x), -1), axis=1)


def test_what_does_nothing_is_left_out():
    idle = Guidance(1.0, guide_weight=1.0).without_idle_parts()
    assert idle.weight is idle.guide_weight is idle.interval is idle.rescale is None
    assert idle.parallel is idle.max_norm is None and not idle.varies and idle.is_affine
    assert Guidance(2.0, interval=(-20.0, 1.0)).without_idle_parts().interval == (-math.inf, 1.0)
    for active in (
        {"interval": (-1.0, 20.0)},
        {"schedule": LinearWeight()},
        {"schedule": OscillatingWeight(1.0)},
    ):
        assert Guidance(2.0, **active).without_idle_parts().varies
    for active in ({"rescale": 0.1}, {"parallel": 0.9}, {"max_norm": 9.0}):
        assert not Guidance(2.0, **active).without_idle_parts().is_affine


def test_the_interval_contains_its_lower_end_and_not_its_upper():
    guidance = Guidance(3.0, interval=(-1.0, 2.0)).without_idle_parts()
    strength = guidance.strength(jnp.array([-1.01, -1.0, 1.99, 2.0]))
    np.testing.assert_array_equal(strength, [0, 1, 1, 0])


@pytest.mark.parametrize("num_steps", [1, 2, 9, 10])
@pytest.mark.parametrize("schedule", [ConstantWeight(), LinearWeight(), CosineWeight()])
def test_schedules_have_the_weight_as_their_mean(schedule, num_steps):
    grid = jnp.linspace(-9.0, 9.0, num_steps + 1)
    guidance = Guidance(3.0, schedule=schedule).without_idle_parts()
    strength = guidance.strength(grid[:-1], grid)
    np.testing.assert_allclose(np.mean(strength), 1.0, rtol=1e-6)
    assert (np.diff(strength) >= 0).all()
    if num_steps > 1 and not isinstance(schedule, ConstantWeight):
        np.testing.assert_allclose(strength[jnp.array([0, -1])], [0.0, 2.0], atol=1e-6)


def test_oscillation_starts_with_the_weight_and_then_alternates():
    grid = jnp.linspace(20.0, -20.0, 11)[::-1]
    guidance = Guidance(15.0, schedule=OscillatingWeight(0.4)).without_idle_parts()
    expected = [1, 1, 1, 1, 0, 1, 0, 1, 0, 1]
    np.testing.assert_array_equal(guidance.strength(grid[:-1], grid), expected)
    # A level that was rounded otherwise still belongs to its step.
    np.testing.assert_array_equal(guidance.strength(grid[:-1] - 1e-4, grid), expected)


def test_no_projection_and_no_bound_are_plain_guidance():
    conditional, reference = draw(0), draw(1)
    plain = guide(conditional, reference, 4.0)
    large = Guidance(4.0, max_norm=1e6)  # takes the other path through the code
    np.testing.assert_allclose(combined(large, conditional, (reference, 4.0)), plain, atol=2e-6)
    np.testing.assert_array_equal(combined(Guidance(4.0), conditional, (reference, 4.0)), plain)


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_projection_scales_the_parallel_part_alone(eta):
    conditional, reference = draw(0), draw(1)
    guided = combined(Guidance(4.0, parallel=eta), conditional, (reference, 4.0))
    for b in range(3):
        c, r = (np.float64(x[b]).ravel() for x in (conditional, reference))
        along = (c - r) @ c / (c @ c) * c
        expected = c + 3.0 * ((c - r - along) + eta * along)
        # float32 sums over 24 numbers of some 10.
        np.testing.assert_allclose(np.ravel(guided[b]), expected, atol=1e-5)


def test_the_bound_shortens_long_differences_alone():
    conditional = draw(0)
    reference = conditional - draw(1) * jnp.array([0.01, 1.0, 5.0])[:, None, None, None]
    guided = combined(Guidance(2.0, max_norm=1.5), conditional, (reference, 2.0))
    lengths = norms(guided - conditional)
    expected = np.minimum(norms(conditional - reference), 1.5)
    # Small differences of numbers of size 1.
    np.testing.assert_allclose(lengths, expected, rtol=1e-4)
    assert (expected == 1.5).tolist() == [False, True, True]


def test_rescaling_meets_the_standard_deviation():
    conditional, guided = draw(0), 7.0 * draw(1) + 1.0
    axes = (1, 2, 3)
    full = rescaled(guided, conditional, 1.0)
    np.testing.assert_allclose(np.std(full, axes), np.std(conditional, axes), rtol=1e-5)
    np.testing.assert_allclose(
        rescaled(guided, conditional, 0.25), 0.25 * full + 0.75 * guided, rtol=1e-5, atol=1e-5
    )
    flat = rescaled(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3)), 0.7)
    assert np.isfinite(flat).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": math.nan}, "weight=nan must be finite"),
        ({"guide_weight": math.inf}, "guide_weight=inf must be finite"),
        ({"interval": (2.0, 2.0)}, r"interval=\(2.0, 2.0\) is empty"),
        ({"interval": (math.nan, 2.0)}, r"interval=\(nan, 2.0\) is empty"),
        ({"interval": (1.0,)}, "must be two log-SNRs"),
        ({"rescale": 1.5}, r"rescale=1.5 must be in \[0, 1\]"),
        ({"parallel": -0.1}, r"parallel=-0.1 must be in \[0, 1\]"),
        ({"max_norm": -1.0}, "max_norm=-1.0 must be at least 0"),
        ({"max_norm": math.nan}, "max_norm=nan"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Guidance(**settings)
    with pytest.raises(UserError, match=r"constant=1\.5"):
        OscillatingWeight(1.5)
