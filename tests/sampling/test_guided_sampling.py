"""Guidance through the sampler and the cascade: intervals, negative prompts, autoguidance."""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import SampleConfig
from imagen_jax.denoiser import Guide, References, make_network_fn, network_denoiser
from imagen_jax.diffusion.guidance import Guidance, LinearWeight, OscillatingWeight
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.errors import UserError
from imagen_jax.sampling import Cascade
from imagen_jax.sampling import loop as lib
from imagen_jax.stage import open_stage
from imagen_jax.types import TextCond

TEXT_DIM, LENGTH, BATCH = 6, 5, 2
LOGSNR = jnp.array([0.5, 0.5])


@pytest.fixture(scope="module")
def case(tiny_config, random_params):
    """The base stage, its parameters, those of a guide, and two texts."""
    stage = open_stage(tiny_config, "base", TEXT_DIM)
    rng = np.random.default_rng(0)

    def text(*lengths):
        mask = np.arange(LENGTH)[None] < np.array(lengths)[:, None]
        tokens = rng.standard_normal((BATCH, LENGTH, TEXT_DIM)).astype(np.float32)
        return TextCond(jnp.asarray(tokens * mask[:, :, None]), jnp.asarray(mask))

    params = random_params(stage, seed=3), random_params(stage, seed=4)
    return stage, *params, text(2, 5), text(1, 3)


def draw(case, guidance, references=lib.NO_REFERENCES):
    stage, params, _, text, _ = case
    keys = lib.picture_keys(np.arange(BATCH, dtype=np.uint32), 0)
    config = SampleConfig(num_steps=3, sampler=DDIM(), guidance=guidance)
    settings = lib.make_settings(config, has_guide=references.guide is not None)
    return lib.sample_stage(stage, params, text, keys, settings, references=references)


@pytest.mark.slow
def test_where_an_interval_acts_and_where_not(case):
    plain, unguided = draw(case, Guidance(3.0)), draw(case, Guidance(1.0))
    assert np.abs(plain - unguided).max() > 0.1
    # The network is called at log-SNRs of -20 to 4. Another program rounds otherwise.
    everywhere = draw(case, Guidance(3.0, interval=(-20.0, 19.0)))
    np.testing.assert_allclose(everywhere, plain, atol=1e-4)
    nowhere = draw(case, Guidance(3.0, interval=(19.0, 20.0)))
    np.testing.assert_allclose(nowhere, unguided, atol=1e-4)
    once = draw(case, Guidance(3.0, interval=(0.0, 20.0)))
    assert min(np.abs(once - plain).max(), np.abs(once - unguided).max()) > 1e-2
    # One program: that of an oscillating weight which never oscillates, and one which does.
    constant = draw(case, Guidance(3.0, schedule=OscillatingWeight(1.0)))
    np.testing.assert_allclose(constant, plain, atol=1e-4)
    alternating = draw(case, Guidance(3.0, schedule=OscillatingWeight(1 / 3)))
    assert np.abs(alternating - plain).max() > 1e-2


@pytest.mark.slow
def test_sweeps_do_not_recompile(case):
    first = {"rescale": 0.7, "parallel": 0.0, "max_norm": 2.0, "interval": (-3.0, 2.0)}
    second = {"rescale": 0.1, "parallel": 0.5, "max_norm": 5.0, "interval": (-20.0, 1.0)}
    draw(case, Guidance(3.0, schedule=OscillatingWeight(0.1), **first))
    before = lib.sampler_program()._cache_size()
    draw(case, Guidance(8.0, schedule=OscillatingWeight(0.9), **second))
    assert lib.sampler_program()._cache_size() == before
    draw(case, Guidance(8.0, schedule=LinearWeight(), **second))
    assert lib.sampler_program()._cache_size() == before + 1


def convolved_rows(jaxpr):
    """The batch sizes of all convolutions of a program, those in its parts too."""
    rows = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            batch = equation.params["dimension_numbers"].lhs_spec[0]
            rows.add(equation.invars[0].aval.shape[batch])
        for part in jax.extend.core.jaxprs_in_params(equation.params):
            rows |= convolved_rows(part)
    return rows


def test_the_branch_without_guidance_has_half_the_rows(case):
    stage, params, _, text, _ = case
    z = jnp.zeros((BATCH, 8, 8, 3))
    guidance = Guidance(3.0, interval=(-1.0, 1.0))
    denoise = network_denoiser(stage.network, params, text, "v", guidance=guidance)
    program = jax.make_jaxpr(lambda z, logsnr: denoise(z, logsnr).x_hat)(z, LOGSNR).jaxpr
    (choice,) = [equation for equation in program.eqns if equation.primitive.name == "cond"]
    without, guided = (convolved_rows(branch.jaxpr) for branch in choice.params["branches"])
    assert (without, guided) == ({BATCH}, {2 * BATCH})
    # Nothing runs beside the branches.
    others = [equation for equation in program.eqns if equation is not choice]
    assert not any(equation.primitive.name == "conv_general_dilated" for equation in others)


def test_the_formula_of_all_references(case):
    stage, params, weaker, text, negative = case
    z = jax.random.normal(jax.random.key(5), (BATCH, 8, 8, 3))
    references = References(negative, Guide(weaker, stage.network))

    @jax.jit
    def outputs(params, weaker):
        runs = ((params, text), (params, negative), (weaker, text))
        return [make_network_fn(stage.network, *run)(z, LOGSNR).conditional for run in runs]

    @jax.jit
    def guided(params, references, guidance):
        return network_denoiser(
            stage.network, params, text, "x", guidance=guidance, references=references
        )(z, LOGSNR).x_hat

    d, d_0, d_g = outputs(params, weaker)
    guidance = Guidance(3.0, guide_weight=1.5).without_idle_parts()
    both = guided(params, references, guidance)
    np.testing.assert_allclose(both, d + 2.0 * (d - d_0) + 0.5 * (d - d_g), atol=1e-4)
    alone = guided(params, references, dataclasses.replace(guidance, weight=None))
    np.testing.assert_allclose(alone, d + 0.5 * (d - d_g), atol=1e-4)


@pytest.mark.slow
def test_a_cascade_guided_by_itself_and_by_the_prompt_itself(tiny):
    weaker = dataclasses.replace(tiny, stages={"base": tiny.stages["base"]})
    plain, guided = Cascade.from_artefact(tiny), Cascade.from_artefact(tiny, guide=weaker)
    ask = {"num_images": 2, "stages": "base", "guidance": Guidance(1.0, guide_weight=3.0)}
    unguided = plain("a red circle", **ask)
    itself = guided("a red circle", **ask)
    # Of 8 bits.
    np.testing.assert_allclose(
        np.int16(itself.images["base"]), np.int16(unguided.images["base"]), atol=1
    )
    assert itself.guide_weights == {"base": "0" * 64} and not unguided.guide_weights
    assert itself.metadata("base")["guide_weights"] == itself.guide_weights

    ask["guidance"] = Guidance(3.0)
    same = plain(["a red circle"], negative_prompt="a red circle", **ask)
    np.testing.assert_allclose(
        np.int16(same.images["base"]), np.int16(unguided.images["base"]), atol=1
    )
    # One for each prompt: the null text is not the empty prompt.
    prompts = ["a red circle"] * 3
    by_prompt = plain(prompts, negative_prompt=["a red circle", None, ""], **ask)
    null = plain("a red circle", **ask).images["base"]
    drawn = by_prompt.images["base"].reshape(3, *null.shape)
    np.testing.assert_allclose(np.int16(drawn[0]), np.int16(unguided.images["base"]), atol=1)
    np.testing.assert_allclose(np.int16(drawn[1]), np.int16(null), atol=1)
    assert np.abs(np.int16(drawn[2]) - null).max() > 1
    negatives = [by_prompt.picture_metadata("base", 2 * i).get("negative_prompt") for i in range(3)]
    assert negatives == ["a red circle", None, ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompt": [3]}, "a negative prompt is a string, not 3"),
        ({"negative_prompt": "b", "guidance_weight": 1}, "'b' does nothing"),
        ({"guidance": 3}, "guidance=3 is no Guidance"),
        ({"guidance": {"sr64": Guidance()}}, "guidance for 'sr64'"),
        ({"guidance": Guidance(guide_weight=1.0)}, "do nothing with guide_weight=1"),
        ({"stages": "sr16", "low_res_image": np.zeros((8, 8, 3), np.uint8)}, "are for base"),
        ({"prompts": "(a:1", "prompt_weights": True}, "has no closing one"),
    ],
)
def test_what_is_refused(tiny, arguments, message):
    weaker = dataclasses.replace(tiny, stages={"base": tiny.stages["base"]})
    cascade = Cascade.from_artefact(tiny, guide=weaker)
    with pytest.raises(UserError, match=message):
        cascade(**{"prompts": "a", "num_images": 1, **arguments})


def test_guides_that_do_not_fit(tiny):
    def changed(**settings):
        base = dataclasses.replace(tiny.config.stages["base"], **settings)
        config = dataclasses.replace(tiny.config, stages={"base": base})
        return dataclasses.replace(tiny, config=config, stages={"base": tiny.stages["base"]})

    base = tiny.config.stages["base"]
    other = dataclasses.replace(base.diffusion, prediction="eps")
    for guide, message in (
        (dataclasses.replace(tiny, encoder_identity="x"), "another text encoder"),
        (dataclasses.replace(tiny, tokenizer_hash="x"), "another tokenizer"),
        (dataclasses.replace(tiny, stages={}), "have the stages none"),
        (changed(resolution=16), "resolution=16"),
        (changed(diffusion=other), "prediction=eps"),
        (changed(model=dataclasses.replace(base.model, channels=(8, 24))), "do not fit"),
    ):
        with pytest.raises(UserError, match=message):
            Cascade.from_artefact(tiny, guide=guide)
