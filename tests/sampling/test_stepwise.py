"""A program a step draws the pictures of the whole program."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.config import MeshConfig
from imagen_jax.parallel.mesh import make_mesh, replicated
from imagen_jax.sampling.loop import make_settings, picture_keys, sample_stage
from imagen_jax.sampling.stepwise import sample_programs
from imagen_jax.stage import open_stage


def test_it_draws_the_pictures_of_the_whole_program(tiny, encoder):
    name = "sr16"
    stage = open_stage(tiny.config, name, encoder.dim)
    params = jax.tree.map(jnp.asarray, tiny.stages[name].params)
    text = encoder.encode_captions(["a red circle", "a blue square"])
    keys = picture_keys(jnp.arange(2), 0)
    settings = make_settings(stage.config.sample)
    low_res = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    size = stage.config.resolution
    want = sample_stage(stage, params, text, keys, settings, low_res)

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    start, step = sample_programs(stage, replicated(mesh))
    state = start(keys, settings, shape=(size, size))
    for index in range(settings.num_steps):
        state = step(
            params, text, keys, settings, low_res, state, np.int32(index), shape=(size, size)
        )
    np.testing.assert_allclose(state[0], want, atol=1e-5)
