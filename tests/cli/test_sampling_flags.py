"""The flags that change sampling settings, for all stages or by stage."""

import dataclasses

import pytest

from imagen_jax.cli.sampling_flags import check_sampling_flags, override
from imagen_jax.config import SampleConfig
from imagen_jax.diffusion.grids import ExplicitGrid, KarrasGrid
from imagen_jax.diffusion.guidance import Guidance, OscillatingWeight
from imagen_jax.diffusion.samplers import DDIM, Ancestral, DPMSolver
from imagen_jax.diffusion.thresholding import DynamicThreshold, StaticThreshold
from imagen_jax.errors import UserError


def test_for_all_stages_or_by_stage(config):
    flags = {"eta": "0.5", "num_steps": "base=9,sr16=7", "guidance_weight": "sr16=-1"}
    given = {"base": SampleConfig(threshold=DynamicThreshold(percentile=90.0))}
    merged = override(flags, config, given)
    assert merged["base"] == SampleConfig(
        num_steps=9, sampler=DDIM(eta=0.5), threshold=DynamicThreshold(percentile=90.0)
    )
    assert merged["sr16"] == dataclasses.replace(
        config.stages["sr16"].sample, num_steps=7, sampler=DDIM(eta=0.5), guidance=Guidance(-1.0)
    )


def test_another_kind_has_its_defaults_and_takes_its_own_settings(config):
    merged = override(
        {"gamma": "base=0.7", "sampler": "base=ancestral", "threshold": "static"}, config, {}
    )
    assert merged["base"].sampler == Ancestral(gamma=0.7)
    assert merged["sr16"].sampler == DDIM()
    assert {settings.threshold for settings in merged.values()} == {StaticThreshold()}
    # The same kind keeps its settings.
    given = {"base": SampleConfig(sampler=DDIM(eta=0.3))}
    assert override({"sampler": "ddim"}, config, given)["base"].sampler == DDIM(eta=0.3)


def test_guidance(config):
    flags = {
        "guidance_schedule": "base=oscillating",
        "guidance_constant": "0.5",
        "guidance_interval": "base=-3:2.5,sr16=0:20",
        "guidance_parallel": "sr16=0",
    }
    merged = override(flags, config, {"base": SampleConfig(), "sr16": SampleConfig()})
    assert merged["base"].guidance == Guidance(
        schedule=OscillatingWeight(0.5), interval=(-3.0, 2.5)
    )
    assert merged["sr16"].guidance == Guidance(interval=(0.0, 20.0), parallel=0.0)
    check_sampling_flags(flags)


def test_a_value_for_all_stages_changes_those_that_have_the_setting(config):
    given = {"base": SampleConfig(sampler=Ancestral())}
    merged = override({"eta": "0.5"}, config, given)
    assert merged["base"].sampler == Ancestral() and merged["sr16"].sampler == DDIM(eta=0.5)


def test_solvers_and_grids(config):
    flags = {"sampler": "base=dpmpp,sr16=ddim", "grid": "karras", "rho": "5", "order": "3"}
    merged = override({**flags, "num_steps": "base=20"}, config, {})
    assert merged["base"].sampler == DPMSolver(order=3)
    assert merged["base"].grid == merged["sr16"].grid == KarrasGrid(rho=5.0)
    assert merged["sr16"].sampler == DDIM()
    explicit = override({"logsnrs": "base=-8:-2:4"}, config, {})["base"]
    assert explicit.grid == ExplicitGrid((-8.0, -2.0, 4.0)) and explicit.num_steps == 3


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"sampler": "plms"}, "stage 'base': sampler='plms' must be one of ddim, ancestral"),
        ({"sampler": "dpmpp", "order": "4"}, "order=4 must be 1, 2 or 3"),
        ({"sampler": "dpmpp", "num_steps": "1"}, "num_steps=1 is too few"),
        ({"sampler": "heun", "s_churn": "-1"}, "s_churn=-1.0 must be at least 0"),
        ({"grid": "karras", "rho": "0"}, "rho=0.0 must be positive"),
        ({"logsnrs": "-8:-2:-3"}, "logsnrs must rise.* -3.0 comes after -2.0"),
        ({"logsnrs": "-8:2", "num_steps": "3"}, "num_steps=3, but the explicit grid has 2"),
        ({"sampler": "base=ancestral", "eta": "base=1"}, "the sampler 'ancestral' has no eta"),
        ({"gamma": "0.5"}, "no stage has this setting, base has the sampler 'ddim'"),
        ({"percentile": "0.995"}, "stage 'base': percentile=0.995 .*99.5"),
        ({"eta": "sr16=2"}, r"--eta=sr16=2: stage 'sr16': eta=2.0 must be in"),
        ({"guidance_weight": "nan"}, "weight=nan must be finite"),
        ({"guidance_schedule": "sine"}, "schedule='sine' must be one of constant, linear"),
        ({"guidance_constant": "0.5"}, "base has the schedule 'constant'"),
        ({"guidance_constant": "base=0.5"}, "the schedule 'constant' has no constant"),
        ({"guidance_interval": "a:b"}, "'a:b' is not LOW:HIGH, such as -3:2"),
        ({"guidance_interval": "base=3:2"}, r"stage 'base': interval=\(3.0, 2.0\) is empty"),
        ({"guidance_interval": "nan:2"}, r"interval=\(nan, 2.0\) is empty"),
        ({"guidance_max_norm": "-1"}, "max_norm=-1.0 must be at least 0"),
        ({"num_steps": "0"}, "num_steps=0 must be at least 1"),
        ({"num_steps": "2.5"}, "'2.5' is not a whole number"),
        ({"num_steps": "sr64=3"}, "no stage 'sr64'; the stages are base, sr16"),
    ],
)
def test_wrong_values_are_refused(config, flags, message):
    with pytest.raises(UserError, match=message):
        override(flags, config, {})
