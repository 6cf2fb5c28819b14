"""Configuration: conversion, error messages, and every file of configs/."""

import json
from pathlib import Path

import pytest

from imagen_jax.config import (
    CascadeConfig,
    SampleConfig,
    StageConfig,
    from_config_dict,
    from_json_dict,
    load_config,
    to_config_dict,
    to_json_dict,
)
from imagen_jax.diffusion.grids import GRIDS, ExplicitGrid
from imagen_jax.diffusion.guidance import Guidance, OscillatingWeight
from imagen_jax.diffusion.samplers import SAMPLERS, Ancestral
from imagen_jax.errors import UserError
from imagen_jax.optimizers import Muon

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def two_stages() -> dict:
    config = CascadeConfig(
        name="x",
        stages={
            "sr": StageConfig(resolution=64, low_resolution=32),
            "base": StageConfig(resolution=32),
        },
    )
    return to_json_dict(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_valid_and_survive_json(path):
    config = load_config(str(path))
    assert config.name == path.stem
    assert from_json_dict(json.loads(json.dumps(to_json_dict(config)))) == config
    assert from_config_dict(to_config_dict(config)) == config


def test_stages_are_ordered_by_resolution():
    config = from_json_dict(two_stages())
    assert list(config.ordered_stages()) == ["base", "sr"]


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "a b", "*", "é", "x" * 65, "base\n"])
def test_stages_are_directories_and_named_like_one(name, tmp_path):
    values = two_stages()
    values["stages"][name] = values["stages"].pop("base")
    with pytest.raises(UserError, match=r"config\.stages has the name .* letters"):
        from_json_dict(values)
    (tmp_path / "mine.py").write_text(
        "from imagen_jax.config import CascadeConfig, StageConfig, to_config_dict\n\n"
        "def get_config():\n"
        f"    return to_config_dict(CascadeConfig(stages={{{name!r}: StageConfig()}}))\n"
    )
    with pytest.raises(UserError, match=r"stages has the name .* letters"):
        load_config(str(tmp_path / "mine.py"))


def test_names_of_stages():
    values = two_stages()
    values["stages"]["Stage_1-b"] = values["stages"].pop("base")
    assert list(from_json_dict(values).ordered_stages()) == ["Stage_1-b", "sr"]
    with pytest.raises(UserError, match="the name 5 must be a string"):
        from_json_dict({**values, "stages": {5: values["stages"]["sr"]}})


def set_path(values: dict, path: str, value) -> dict:
    *groups, last = path.split(".")
    node = values
    for group in groups:
        node = node[group]
    node[last] = value
    return values


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("stages.base.train.batchsize", 3, "did you mean config.stages.base.train.batch_size"),
        ("sed", 3, "did you mean config.seed"),
        ("xyz", 3, "unknown config key config.xyz; config has name, .*seed"),
        ("stages.base.sample.guidance_weight", 3.0, "did you mean .*sample.guidance.weight"),
        ("stages.base.sample.percentile", 99.0, "did you mean .*sample.threshold.percentile"),
        ("stages.base.train.batch_size", 3.5, "must be of type int"),
        ("stages.base.train.batch_size", "3", "must be of type int"),
        ("stages.base.train.batch_size", True, "must be of type int"),
        ("stages.base.train.batch_size", 0, "at least 1"),
        ("stages.base.sample.threshold.percentile", 0.995, "in percent"),
        ("stages.base.sample.threshold.percentile", 100.5, "in percent"),
        ("stages.base.model.channels", 64, "must be a tuple"),
        ("stages.base.model.channels", (64, "a"), r"channels\[1\] must be of type int"),
        ("stages.base.diffusion.prediction", "noise", "one of eps, v, x"),
        ("stages.base.diffusion.train_levels", "laplace", "one of schedule, normal"),
        ("stages.base.diffusion.train_levels.kind", "laplace", "one of schedule, normal"),
        (
            "stages.base.diffusion.train_levels",
            {"kind": "normal", "std": 0.0},
            "std=0.0 must be pos",
        ),
        ("stages.base.diffusion.train_levels", {"kind": "normal", "mean": -20.0}, "-20 and 20"),
        ("stages.base.diffusion.train_levels", {"std": 1.0}, r"with a kind \(schedule, normal\)"),
        (
            "stages.base.diffusion.loss_weighting",
            {"kind": "min_snr", "power": 1.5},
            r"config.stages.base.diffusion.loss_weighting.power=1.5 must be in \[0, 1\]",
        ),
        (
            "stages.base.sample.sampler.gamma",
            0.5,
            "unknown config key .*sampler.gamma; .*sampler has eta",
        ),
        ("stages.base.sample.sampler", {"kind": "ddim", "eta": 2.0}, r"sampler.eta=2.0 must be in"),
        ("stages.base.sample.guidance", "strong", "must be a group of settings"),
        ("stages.base.model.kind", "vit", "one of unet, efficient_unet"),
        ("stages.base.model.kind", "unet", "unknown config key config.stages.base.model.str"),
        ("stages.base.model.dtype", "float16", "one of float32, bfloat16"),
        ("stages.base.model.channels", (64,), "num_res_blocks=.* has 3 entries"),
        ("stages.base.resolution", 36, "total stride 8"),
        ("stages.base", 3, "must be a group of settings"),
        ("stages.sr.low_resolution", 16, "must chain"),
        ("stages.sr.low_resolution", 30, "multiple"),
        ("stages.base.train.crop_size", 16, "super-resolution stages only"),
        ("stages.sr.train.crop_size", 63, "multiple of the up-scaling factor 2"),
        ("stages", {}, "at least one stage"),
    ],
)
def test_wrong_values_are_named_with_the_remedy(path, value, message):
    with pytest.raises(UserError, match=message):
        from_json_dict(set_path(two_stages(), path, value))


def test_an_integer_serves_as_a_float():
    config = from_json_dict(set_path(two_stages(), "stages.base.sample.guidance.weight", 3))
    assert config.stages["base"].sample.guidance.weight == 3.0


def test_a_missing_config_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.py"):
        load_config("nowhere.py")


def test_a_choice_may_be_given_by_its_kind_alone():
    config = from_json_dict(set_path(two_stages(), "stages.base.sample.sampler", "ancestral"))
    assert config.stages["base"].sample.sampler == Ancestral()


@pytest.mark.parametrize("name", ["shapes", "imagen_paper", "tiny"])
def test_settings_of_version_1_become_the_same_config(name):
    """`version_1.json` holds what the package of version 1 wrote for these configs."""
    saved = json.loads((Path(__file__).parent / "version_1.json").read_text())[name]
    expected = to_json_dict(load_config(f"configs/{name}.py"))
    for stage in expected["stages"].values():
        stage["model"]["shared_key_bias"] = True  # which version 1 always had
    assert to_json_dict(from_json_dict(saved)) == expected
    assert from_json_dict(to_json_dict(from_json_dict(saved))) == from_json_dict(saved)


def test_settings_that_version_1_did_not_have_yet_have_their_defaults():
    saved = json.loads((Path(__file__).parent / "version_1.json").read_text())["shapes"]
    base = saved["stages"]["base"]
    del base["diffusion"]["min_snr_power"], base["train"]["muon_learning_rate"]
    del base["model"]["input_skip"]
    stage = from_json_dict(saved).stages["base"]
    assert stage.diffusion.loss_weighting.power == 1.0
    assert stage.train.optimizer == Muon(adam_b2=0.99)
    assert stage.model.input_skip == "none"


def test_networks_of_version_2_keep_their_skip_and_their_biases():
    values = two_stages()
    base, sr = (stage["model"] for stage in values["stages"].values())
    for model, skip in ((base, True), (sr, False)):
        model["input_skip"] = skip
        del model["shared_key_bias"]
    base, sr = (stage.model for stage in from_json_dict(values).stages.values())
    assert (base.input_skip, sr.input_skip) == ("add", "none")
    assert base.shared_key_bias and sr.shared_key_bias


def test_a_mix_of_pictures_needs_a_network_that_predicts_them():
    values = set_path(two_stages(), "stages.base.model.input_skip", "mix")
    with pytest.raises(UserError, match=r"input_skip='mix' with diffusion\.prediction='v'"):
        from_json_dict(values)


def test_the_command_line_may_choose_another_kind():
    values = to_config_dict(from_json_dict(two_stages()))
    values.stages.base.sample.sampler.kind = "ancestral"
    values.stages.base.sample.sampler.gamma = 0.4
    changed = ["stages.base.sample.sampler.kind", "stages.base.sample.sampler.gamma"]
    config = from_config_dict(values, changed)
    assert config.stages["base"].sample.sampler == Ancestral(gamma=0.4)
    # What the command line itself gives to the wrong kind is an error, not ignored.
    values.stages.base.sample.sampler.eta = 0.5
    with pytest.raises(UserError, match=r"unknown config key .*sampler.eta"):
        from_config_dict(values, [*changed, "stages.base.sample.sampler.eta"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"min_side": float("inf")}}, "min_side=inf must be finite"),
        (
            {"stages": {"base": {"train": {"learning_rate": float("inf")}}}},
            "learning_rate=inf must be finite",
        ),
    ],
)
def test_infinite_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        from_json_dict({"stages": {"base": {}}, **change})


GRIDS_TRIED = [
    *(grid() for grid in GRIDS if grid is not ExplicitGrid),
    ExplicitGrid((-8.0, 0, 1, 4)),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grid", GRIDS_TRIED)
def test_sampling_settings_survive_json(sampler, grid):
    guidance = Guidance(5.0, interval=(-3.0, 5.0), schedule=OscillatingWeight(0.25), rescale=0.5)
    sample = SampleConfig(sampler=sampler(), grid=grid, num_steps=4, guidance=guidance)
    config = CascadeConfig(name="x", stages={"base": StageConfig(resolution=32, sample=sample)})
    assert from_json_dict(json.loads(json.dumps(to_json_dict(config)))) == config
    assert from_config_dict(to_config_dict(config)) == config
