"""The ablation of noise-conditioning augmentation changes that and nothing else."""

import jax
import numpy as np
from networks import tiny_stage

from benchmarks.no_augmentation import without_noise
from imagen_jax.training.step import make_draws


def test_only_the_level_of_the_low_resolution_picture_changes():
    stage, shape = tiny_stage(low_resolution=8), (4, 16, 16, 3)
    draws, dropout_key = make_draws(stage)(jax.random.key(0), shape)
    plain, same_key = without_noise(make_draws, stage)(jax.random.key(0), shape)
    assert np.all(np.asarray(draws.aug_level) > 0.0)
    np.testing.assert_array_equal(plain.aug_level, np.zeros(4, np.float32))
    for name in ("t", "eps", "aug_eps"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(draws, name))
    assert jax.random.key_data(dropout_key).tolist() == jax.random.key_data(same_key).tolist()
