"""The sampler of one stage against a plain loop of two network calls a step."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import SampleConfig
from imagen_jax.errors import UserError
from imagen_jax.models import apply_network, project_text
from imagen_jax.sampling import loop as lib
from imagen_jax.types import TextCond

TEXT_DIM, LENGTH = 6, 5


@pytest.fixture(scope="module", params=["base", "sr16"])
def case(request, tiny_config, random_params):
    stage = tiny_config.stages[request.param]
    model, params = random_params(stage, TEXT_DIM, seed=3)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3, LENGTH, TEXT_DIM)).astype(np.float32)
    mask = np.arange(LENGTH)[None, :] < np.array([[2], [5], [3]])
    text = TextCond(tokens=jnp.asarray(tokens * mask[:, :, None]), mask=jnp.asarray(mask))
    low_res = None
    if stage.low_resolution:
        low_res = jnp.asarray(rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32))
    return stage, model, params, text, low_res


@pytest.fixture(scope="module")
def network(case):
    """The network of the case alone, compiled once."""
    _, model, params, _, _ = case
    return jax.jit(
        lambda z, logsnr, features, condition: apply_network(
            model, params, z, logsnr, features, **condition
        )
    )


def draw(case, sample: SampleConfig, rows=(0, 1, 2), seeds=(10, 11, 12)):
    stage, model, params, text, low_res = case
    rows = np.array(rows)
    return np.asarray(
        lib.sample_stage(
            model,
            stage,
            params,
            jax.tree.map(lambda a: a[rows], text),
            lib.picture_keys(np.asarray(seeds, np.uint32), 1),
            lib.make_settings(sample),
            None if low_res is None else low_res[rows],
        )
    )


# --- the oracle: one picture, numpy, the formulas of the paper ---------------------------------


def logsnr_of(t):
    b = np.arctan(np.exp(-10.0))
    return -2 * np.log(np.tan((np.arctan(np.exp(10.0)) - b) * t + b))


def alpha_sigma(logsnr):
    return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def oracle(case, network, sample: SampleConfig, row: int, seed: int):
    stage, model, params, text, low_res = case
    side = stage.resolution
    key = jax.random.fold_in(jax.random.key(seed), 1)

    def normal(key, index, shape):
        return np.asarray(jax.random.normal(jax.random.fold_in(key, index), shape), np.float64)

    condition = {}
    if low_res is not None:
        clean = np.asarray(low_res[row], np.float64)
        a, s = alpha_sigma(logsnr_of(sample.aug_level))
        noisy = a * clean + s * normal(key, lib.LOW_RES_NOISE, clean.shape)
        large = jax.image.resize(jnp.float32(noisy)[None], (1, side, side, 3), "linear")
        condition = {"low_res": large, "aug_level": jnp.float32([sample.aug_level])}

    conditional = jax.tree.map(lambda a: a[row : row + 1], text)
    zeros = TextCond(tokens=jnp.zeros((1, LENGTH, TEXT_DIM)), mask=jnp.arange(LENGTH)[None, :] == 0)
    features = [project_text(model, params, t) for t in (conditional, zeros)]

    z = normal(key, lib.INITIAL_NOISE, (side, side, 3))
    step_key = jax.random.fold_in(key, lib.STEP_NOISE)
    times = [1 - i / sample.num_steps for i in range(sample.num_steps + 1)]
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        logsnr_t, logsnr_s = logsnr_of(t), logsnr_of(s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
        given, null = (
            np.float64(network(jnp.float32(z)[None], jnp.float32([logsnr_t]), f, condition)[0])
            for f in features
        )
        guided = sample.guidance_weight * given + (1 - sample.guidance_weight) * null
        if stage.diffusion.prediction == "v":
            x = alpha_t * z - sigma_t * guided
        else:
            x = (z - sigma_t * guided) / alpha_t
        if sample.threshold == "static":
            x = np.clip(x, -1, 1)
        elif sample.threshold == "dynamic":
            limit = max(1.0, np.percentile(np.abs(x), sample.percentile))
            if sample.threshold_cap:
                limit = min(limit, sample.threshold_cap)
            x = np.clip(x, -limit, limit) / limit
        if s == 0:
            return x
        eps = (z - alpha_t * x) / sigma_t
        ratio = np.exp(logsnr_t - logsnr_s)
        posterior_var = (1 - ratio) * sigma_s**2
        noise = normal(step_key, i, z.shape)
        if sample.sampler == "ddim":
            std = sample.eta * np.sqrt(posterior_var)
            z = alpha_s * x + np.sqrt(sigma_s**2 - std**2) * eps + std * noise
        else:
            forward_var = (1 - ratio) * sigma_t**2
            std = np.sqrt(posterior_var ** (1 - sample.gamma) * forward_var**sample.gamma)
            z = ratio * alpha_s / alpha_t * z + (1 - ratio) * alpha_s * x + std * noise
    raise AssertionError("the grid ends at 0")


@pytest.mark.parametrize(
    "sample",
    [
        SampleConfig(num_steps=3, eta=0.7, guidance_weight=3.0, percentile=90.0, aug_level=0.3),
        SampleConfig(num_steps=3, sampler="ancestral", gamma=0.4, threshold="static"),
        SampleConfig(num_steps=3, eta=0.0, percentile=90.0, threshold_cap=1.5, aug_level=0.0),
        SampleConfig(num_steps=3, guidance_weight=1.0, threshold="static"),
    ],
    ids=["ddim", "ancestral", "cap", "unguided"],
)
def test_equals_a_plain_loop(case, network, sample):
    pictures = draw(case, sample)
    # float32 against float64. At t = 1 an eps network's x_hat is divided by alpha = 4.5e-5, which
    # makes 1e-3 of rounding errors of 1e-7; dynamic thresholding divides them again, clipping not.
    clipped_eps = case[0].diffusion.prediction == "eps" and sample.threshold == "static"
    tolerance = 5e-3 if clipped_eps else 2e-4
    for row, seed in enumerate((10, 11, 12)):
        expected = oracle(case, network, sample, row, seed)
        np.testing.assert_allclose(pictures[row], expected, atol=tolerance)


def test_numbers_do_not_recompile_but_choices_do(case):
    draw(case, SampleConfig(num_steps=3))
    before = lib.sampler_program()._cache_size()
    draw(
        case,
        SampleConfig(
            num_steps=3,
            guidance_weight=1.5,
            percentile=50.0,
            threshold_cap=2.0,
            eta=1.0,
            gamma=0.9,
            aug_level=0.7,
        ),
    )
    assert lib.sampler_program()._cache_size() == before
    draw(case, SampleConfig(num_steps=1))
    assert lib.sampler_program()._cache_size() == before + 1


def test_a_picture_does_not_depend_on_its_neighbours(case):
    sample = SampleConfig(num_steps=3, eta=0.5)
    pictures = draw(case, sample)
    # The same program: bit for bit.
    swapped = draw(case, sample, rows=(1, 0, 0), seeds=(11, 99, 10))
    np.testing.assert_array_equal(swapped[0], pictures[1])
    np.testing.assert_array_equal(swapped[2], pictures[0])
    # Another batch size is another program, which may add in another order.
    alone = draw(case, sample, rows=(2,), seeds=(12,))
    np.testing.assert_allclose(alone[0], pictures[2], atol=1e-4)


def test_text_decides_the_picture(case):
    sample = SampleConfig(num_steps=3, guidance_weight=4.0)
    a, b = draw(case, sample, rows=(0, 1, 0), seeds=(10, 10, 10))[:2]
    exchanged = draw(case, sample, rows=(1, 0, 0), seeds=(10, 10, 10))
    assert np.abs(a - b).max() > 1e-2
    np.testing.assert_array_equal(exchanged[0], b)
    np.testing.assert_array_equal(exchanged[1], a)


def test_weight_zero_ignores_the_text(case):
    sample = SampleConfig(num_steps=3, guidance_weight=0.0)
    pictures = draw(case, sample, rows=(0, 1, 2), seeds=(10, 10, 10))
    if not case[0].low_resolution:  # the pictures of the sr16 case differ in their low_res
        np.testing.assert_array_equal(pictures[0], pictures[1])


def test_only_the_last_state_is_kept(case):
    stage, model, params, text, low_res = case
    keys = lib.picture_keys(np.arange(3, dtype=np.uint32), 0)

    def memory(num_steps):
        lowered = lib.sampler_program().lower(
            params,
            text,
            keys,
            lib.make_settings(SampleConfig(num_steps=num_steps)),
            low_res,
            model=model,
            diffusion=stage.diffusion,
            resolution=stage.resolution,
            shape=(stage.resolution, stage.resolution),
        )
        analysis = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    one_picture = stage.resolution**2 * 3 * 4
    assert memory(40) - memory(4) < one_picture


def test_keys_differ_by_seed_and_stage():
    keys = {
        np.asarray(jax.random.key_data(lib.picture_keys(np.uint32([seed]), stage))).tobytes()
        for seed in (0, 1, 2**32 - 1)
        for stage in (0, 1)
    }
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("percentile", 0.995),
        ("percentile", float("nan")),
        ("guidance_weight", float("nan")),
        ("num_steps", 0),
        ("sampler", "euler"),
        ("threshold", "soft"),
        ("threshold_cap", 0.5),
        ("eta", 1.5),
        ("gamma", -0.1),
        ("aug_level", 2.0),
    ],
)
def test_settings_out_of_range(field, value):
    wrong = dataclasses.replace(SampleConfig(), **{field: value})
    with pytest.raises(UserError, match=f"base.{field}"):
        lib.make_settings(wrong, "base")


def test_low_res_must_fit(case):
    stage, model, params, text, _ = case
    wrong = None if stage.low_resolution else jnp.zeros((3, 8, 8, 3))
    keys = lib.picture_keys(np.arange(3, dtype=np.uint32), 0)
    with pytest.raises(UserError, match="low-resolution"):
        lib.sample_stage(model, stage, params, text, keys, lib.make_settings(SampleConfig()), wrong)
