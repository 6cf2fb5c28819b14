"""Opened stages."""

import dataclasses

import jax
import pytest

from imagen_jax.config import load_config
from imagen_jax.errors import UserError
from imagen_jax.stage import open_stage


@pytest.fixture(scope="module")
def cascade():
    return load_config("configs/tiny.py")


def test_a_stage_knows_its_place_its_factor_and_its_randomness(cascade):
    base, sr = (open_stage(cascade, name, 8) for name in ("base", "sr16"))
    assert (base.index, sr.index) == (0, 1)
    assert (base.factor, sr.factor) == (0, 2)
    assert base.network.low_res is False and sr.network.low_res is True
    keys = [jax.random.key_data(stage.key()).tolist() for stage in (base, sr)]
    assert keys[0] != keys[1]
    other = open_stage(dataclasses.replace(cascade, seed=1), "base", 8)
    assert jax.random.key_data(other.key()).tolist() not in keys


def test_without_remat_the_parameters_stay_and_nothing_is_computed_twice(cascade):
    stage = open_stage(cascade, "base", 8)
    model = dataclasses.replace(stage.config.model, scan_blocks=True, remat=("full", "convs"))
    scanned = stage.replace(dataclasses.replace(stage.config, model=model))
    assert scanned.network.config.scan_blocks
    plain = scanned.without_remat()
    assert plain.config == stage.config
    shapes = [jax.tree.map(lambda leaf: leaf.shape, s.abstract_params()) for s in (scanned, plain)]
    assert shapes[0] == shapes[1]


def test_wrong_stages_are_refused(cascade):
    with pytest.raises(UserError, match="no stage 'sr64'; the stages are base, sr16"):
        open_stage(cascade, "sr64", 8)
    with pytest.raises(UserError, match="text_dim=0"):
        open_stage(cascade, "base", 0)
