"""The sampler of one stage against a plain loop of two network calls a step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import SampleConfig, from_json_dict, to_json_dict
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.samplers import DDIM, Ancestral
from imagen_jax.diffusion.thresholding import DynamicThreshold, StaticThreshold
from imagen_jax.errors import UserError
from imagen_jax.models import apply_network, project_text
from imagen_jax.sampling import loop as lib
from imagen_jax.stage import open_stage
from imagen_jax.types import TextCond

TEXT_DIM, LENGTH = 6, 5


@pytest.fixture(scope="module", params=["base", "sr16"])
def case(request, tiny_config, random_params):
    stage = open_stage(tiny_config, request.param, TEXT_DIM)
    params = random_params(stage, seed=3)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3, LENGTH, TEXT_DIM)).astype(np.float32)
    mask = np.arange(LENGTH)[None, :] < np.array([[2], [5], [3]])
    text = TextCond(tokens=jnp.asarray(tokens * mask[:, :, None]), mask=jnp.asarray(mask))
    low_res = None
    if stage.factor:
        low_res = jnp.asarray(rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32))
    return stage, params, text, low_res


@pytest.fixture(scope="module")
def network(case):
    """The network of the case alone, compiled once."""
    stage, params, _, _ = case
    return jax.jit(
        lambda z, logsnr, features, condition: apply_network(
            stage.network, params, z, logsnr, features, **condition
        )
    )


def draw(case, sample: SampleConfig, rows=(0, 1, 2), seeds=(10, 11, 12)):
    stage, params, text, low_res = case
    rows = np.array(rows)
    return np.asarray(
        lib.sample_stage(
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
    stage, params, text, low_res = case
    side = stage.config.resolution
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
    features = [project_text(stage.network, params, t) for t in (conditional, zeros)]

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
        guided = sample.guidance.weight * given + (1 - sample.guidance.weight) * null
        if stage.config.diffusion.prediction == "v":
            x = alpha_t * z - sigma_t * guided
        else:
            x = (z - sigma_t * guided) / alpha_t
        if isinstance(sample.threshold, StaticThreshold):
            x = np.clip(x, -1, 1)
        elif isinstance(sample.threshold, DynamicThreshold):
            limit = max(1.0, np.percentile(np.abs(x), sample.threshold.percentile))
            if sample.threshold.cap:
                limit = min(limit, sample.threshold.cap)
            x = np.clip(x, -limit, limit) / limit
        if s == 0:
            return x
        eps = (z - alpha_t * x) / sigma_t
        ratio = np.exp(logsnr_t - logsnr_s)
        posterior_var = (1 - ratio) * sigma_s**2
        noise = normal(step_key, i, z.shape)
        if isinstance(sample.sampler, DDIM):
            std = sample.sampler.eta * np.sqrt(posterior_var)
            z = alpha_s * x + np.sqrt(sigma_s**2 - std**2) * eps + std * noise
        else:
            forward_var = (1 - ratio) * sigma_t**2
            std = np.sqrt(
                posterior_var ** (1 - sample.sampler.gamma) * forward_var**sample.sampler.gamma
            )
            z = ratio * alpha_s / alpha_t * z + (1 - ratio) * alpha_s * x + std * noise
    raise AssertionError("the grid ends at 0")


@pytest.mark.parametrize(
    "sample",
    [
        SampleConfig(
            num_steps=3,
            aug_level=0.3,
            sampler=DDIM(eta=0.7),
            guidance=Guidance(3.0),
            threshold=DynamicThreshold(percentile=90.0),
        ),
        SampleConfig(num_steps=3, sampler=Ancestral(gamma=0.4), threshold=StaticThreshold()),
        SampleConfig(
            num_steps=3,
            aug_level=0.0,
            sampler=DDIM(eta=0.0),
            threshold=DynamicThreshold(percentile=90.0, cap=1.5),
        ),
        SampleConfig(num_steps=3, guidance=Guidance(1.0), threshold=StaticThreshold()),
    ],
    ids=["ddim", "ancestral", "cap", "unguided"],
)
def test_equals_a_plain_loop(case, network, sample):
    pictures = draw(case, sample)
    # float32 against float64. At t = 1 an eps network's x_hat is divided by alpha = 4.5e-5, which
    # makes 1e-3 of rounding errors of 1e-7; dynamic thresholding divides them again, clipping not.
    clipped_eps = case[0].config.diffusion.prediction == "eps" and isinstance(
        sample.threshold, StaticThreshold
    )
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
            aug_level=0.7,
            sampler=DDIM(eta=1.0),
            guidance=Guidance(1.5),
            threshold=DynamicThreshold(percentile=50.0, cap=2.0),
        ),
    )
    assert lib.sampler_program()._cache_size() == before
    draw(case, SampleConfig(num_steps=1))
    assert lib.sampler_program()._cache_size() == before + 1


def test_a_picture_does_not_depend_on_its_neighbours(case):
    sample = SampleConfig(num_steps=3, sampler=DDIM(eta=0.5))
    pictures = draw(case, sample)
    # The same program: bit for bit.
    swapped = draw(case, sample, rows=(1, 0, 0), seeds=(11, 99, 10))
    np.testing.assert_array_equal(swapped[0], pictures[1])
    np.testing.assert_array_equal(swapped[2], pictures[0])
    # Another batch size is another program, which may add in another order.
    alone = draw(case, sample, rows=(2,), seeds=(12,))
    np.testing.assert_allclose(alone[0], pictures[2], atol=1e-4)


def test_text_decides_the_picture(case):
    sample = SampleConfig(num_steps=3, guidance=Guidance(4.0))
    a, b = draw(case, sample, rows=(0, 1, 0), seeds=(10, 10, 10))[:2]
    exchanged = draw(case, sample, rows=(1, 0, 0), seeds=(10, 10, 10))
    assert np.abs(a - b).max() > 1e-2
    np.testing.assert_array_equal(exchanged[0], b)
    np.testing.assert_array_equal(exchanged[1], a)


def test_weight_zero_ignores_the_text(case):
    sample = SampleConfig(num_steps=3, guidance=Guidance(0.0))
    pictures = draw(case, sample, rows=(0, 1, 2), seeds=(10, 10, 10))
    if not case[0].factor:  # the pictures of the sr16 case differ in their low_res
        np.testing.assert_array_equal(pictures[0], pictures[1])


def test_only_the_last_state_is_kept(case):
    stage, params, text, low_res = case
    keys = lib.picture_keys(np.arange(3, dtype=np.uint32), 0)
    side = stage.config.resolution

    def memory(num_steps):
        lowered = lib.sampler_program().lower(
            params,
            text,
            keys,
            lib.make_settings(SampleConfig(num_steps=num_steps)),
            low_res,
            **lib.static_arguments(stage, (side, side)),
        )
        analysis = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    one_picture = side**2 * 3 * 4
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
        ("threshold.percentile", 0.995),
        ("threshold.percentile", float("nan")),
        ("guidance.weight", float("nan")),
        ("num_steps", 0),
        ("sampler.kind", "plms"),
        ("threshold.kind", "soft"),
        ("threshold.cap", 0.5),
        ("sampler.eta", 1.5),
        ("sampler", {"kind": "ancestral", "gamma": -0.1}),
        ("aug_level", 2.0),
    ],
)
def test_settings_out_of_range(field, value, tiny_config):
    values = to_json_dict(tiny_config)
    *groups, last = field.split(".")
    node = values["stages"]["base"]["sample"]
    for group in groups:
        node = node[group]
    node[last] = value
    with pytest.raises(UserError, match=rf"config.stages.base.sample.{field}"):
        from_json_dict(values)


def test_low_res_must_fit(case):
    stage, params, text, _ = case
    wrong = None if stage.factor else jnp.zeros((3, 8, 8, 3))
    keys = lib.picture_keys(np.arange(3, dtype=np.uint32), 0)
    with pytest.raises(UserError, match="low-resolution"):
        lib.sample_stage(stage, params, text, keys, lib.make_settings(SampleConfig()), wrong)
