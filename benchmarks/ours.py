"""This package as a subject of `measure`: the programs that `train.py` and `sample.py` run."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import graphs
from benchmarks.measure import CONVOLUTION, DENOISE, MATMUL, TRAIN, Facts, Program, Subject
from imagen_jax.config import CascadeConfig
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.thresholding import DynamicThreshold
from imagen_jax.parallel.compiler import compiler_options
from imagen_jax.sampling.loop import make_settings, picture_keys, sampler_program, static_arguments
from imagen_jax.stage import Stage, open_stage
from imagen_jax.training.flops import matrix_flops
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.state import create_state
from imagen_jax.training.step import make_train_step
from imagen_jax.types import Batch, TextCond

# Sides of the square matrices, and shapes [B, H, W, C] of the convolutions, that find the peak:
# large enough to reach it, small enough to take a fraction of a second.
PEAK_SIZES = {"cpu": (2048, (16, 32, 32, 256)), "gpu": (8192, (256, 64, 64, 512))}


def open_equal_graph(cascade: CascadeConfig, name: str, text_dim: int) -> Stage:
    """A stage whose network is the graph of imagen-pytorch, see `EqualGraph`."""
    stage = open_stage(cascade, name, text_dim)
    network = graphs.EqualGraph(stage.config.model, low_res=bool(stage.factor), text_dim=text_dim)
    return dataclasses.replace(stage, network=network)


def build(
    open_it: Callable[[CascadeConfig, str, int], Stage],
    cascade: CascadeConfig,
    name: str,
    text_dim: int,
    sampling_steps: int,
) -> Subject:
    """Compiles the train step and the sampler of a stage, with random pictures and text.

    Args:
      open_it: `open_stage` or `open_equal_graph`.
      cascade: of the stage. Guidance is on (w = 3 if the stage has none), and thresholding is
        dynamic.
      name: of the stage.
      text_dim: width of the text embeddings.
      sampling_steps: number of steps in one call of the sampler.
    """
    stage = open_it(cascade, name, text_dim)
    train, low = stage.config.train, stage.config.low_resolution
    batch, size = train.batch_size, stage.config.train_size
    optimizer = make_optimizer(train)
    key = jax.random.key(0)
    text_length = cascade.text.max_length
    text = TextCond(
        tokens=jax.random.normal(key, (batch, text_length, text_dim)),
        mask=jnp.ones((batch, text_length), bool),
    )
    image = jax.random.randint(key, (batch, size, size, 3), 0, 256).astype(jnp.uint8)
    data = Batch(image=image, text=text)
    state = jax.jit(functools.partial(create_state, stage.network, optimizer))(key)
    # A copy, because the train step donates its state.
    params = jax.tree.map(jnp.copy, state.params)

    step = make_train_step(stage, optimizer)
    device = jax.devices()[0]
    train_facts, train_program = _compile(
        jax.jit(step, donate_argnums=0, compiler_options=compiler_options(device)),
        (state, data, key),
        {},
        batch,
    )

    def run_train(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = train_program(state, data, key)
        jax.block_until_ready((state, metrics))

    sample = stage.config.sample
    guidance = sample.guidance if sample.guidance.weight != 1.0 else Guidance(3.0)
    settings = make_settings(
        dataclasses.replace(
            sample, num_steps=sampling_steps, guidance=guidance, threshold=DynamicThreshold()
        )
    )
    low_res = None
    if low:
        low_res = jax.random.uniform(key, (batch, low, low, 3), minval=-1.0)
    inputs = (params, text, picture_keys(jnp.arange(batch), 0), settings, low_res)
    side = stage.config.resolution
    sample_facts, sample_program = _compile(
        sampler_program(), inputs, static_arguments(stage, (side, side)), batch * sampling_steps
    )

    def run_sample(count: int) -> None:
        for _ in range(count):
            pictures = sample_program(*inputs)
        jax.block_until_ready(pictures)

    return Subject(
        device=device.device_kind,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        programs={
            **_peak_programs(device.platform, stage.config.model.dtype),
            TRAIN: Program(train_facts, run_train),
            DENOISE: Program(sample_facts, run_sample),
        },
    )


def _compile(
    jitted: jax.stages.Wrapped, arguments: tuple, static: dict, units: int
) -> tuple[Facts, Callable]:
    function = jitted.__wrapped__  # a jit with compiler options cannot be traced inside another
    start = time.perf_counter()
    compiled = jitted.lower(*arguments, **static).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    facts = Facts(
        units=units,
        matrix_flops=matrix_flops(functools.partial(function, **static), *arguments) / units,
        xla_flops=(compiled.cost_analysis() or {}).get("flops", 0.0) / units,
        compile_seconds=seconds,
        program_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    )
    return facts, compiled


def _peak_programs(platform: str, dtype: str) -> dict[str, Program]:
    side, shape = PEAK_SIZES.get(platform, PEAK_SIZES["gpu"])
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    picture = jax.random.normal(jax.random.key(0), shape, dtype)
    kernel = jax.random.normal(jax.random.key(0), (3, 3, shape[-1], shape[-1]), dtype)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def program(function: Callable, *inputs: jax.Array) -> Program:
        jitted = jax.jit(function)

        def run(count: int) -> None:
            for _ in range(count):
                result = jitted(*inputs)
            jax.block_until_ready(result)

        return Program(Facts(units=1, matrix_flops=matrix_flops(function, *inputs)), run)

    return {
        MATMUL: program(jnp.matmul, matrix, matrix),
        CONVOLUTION: program(convolve, picture, kernel),
    }
