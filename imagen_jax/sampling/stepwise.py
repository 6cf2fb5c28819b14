"""Sampling from one stage with a program a step, so that the caller can act between two steps.

It draws the pictures of `sampling.loop.sample_stage`. The text is projected anew in each step, so a
step is a little slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding

from imagen_jax.diffusion import samplers
from imagen_jax.parallel.compiler import compiler_options
from imagen_jax.sampling.loop import SampleSettings, initial_noise, make_denoiser, step_keys
from imagen_jax.stage import Stage
from imagen_jax.types import Array, Params, TextCond

# z `[B, H, W, 3]` float32 and the carry of the sampler. After the last step z is the picture.
State = tuple[Array, Any]


def sample_programs(stage: Stage, sharding: NamedSharding) -> tuple[Callable[..., State], ...]:
    """Two jitted functions: `start`, to be called once, and `step`.

    `start(keys, settings, shape=(H, W)) -> state`
    `step(params, text, keys, settings, low_res, state, index, shape=(H, W)) -> state`

    `index` is an int32 array, the number of the step, from 0 to `settings.num_steps` - 1; see
    `sample_stage` for the rest. Both compile once for each shape; `step` donates the state.

    Args:
      stage: what to draw with.
      sharding: of the state.
    """
    diffusion = stage.config.diffusion
    schedule = diffusion.schedule.at(stage.config.resolution)

    def start(keys: Array, settings: SampleSettings, shape: tuple[int, int]) -> State:
        z = initial_noise(keys, shape)
        return z, settings.sampler.init(z, settings.grid.at(schedule, settings.num_steps))

    def step(
        params: Params,
        text: TextCond,
        keys: Array,
        settings: SampleSettings,
        low_res: Array | None,
        state: State,
        index: Array,
        shape: tuple[int, int],
    ) -> State:
        grid = settings.grid.at(schedule, settings.num_steps)
        network = stage.network
        denoise = make_denoiser(
            params, text, keys, settings, low_res, network, diffusion, shape, grid
        )
        return samplers.advance(denoise, state, index, step_keys(keys), grid, settings.sampler)

    return (
        jax.jit(start, static_argnames="shape", out_shardings=sharding),
        jax.jit(
            step,
            static_argnames="shape",
            out_shardings=sharding,
            donate_argnames="state",
            compiler_options=compiler_options(sharding.mesh.devices.flat[0]),
        ),
    )
