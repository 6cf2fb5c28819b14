"""A tiny stage, and size and FLOPs of networks, shared by the tests of the benchmarks."""

import dataclasses

import jax
import jax.numpy as jnp

from imagen_jax.config import CascadeConfig, StageConfig, TextConfig, TrainConfig
from imagen_jax.models import EfficientUNetConfig, apply_network, init_params, project_text
from imagen_jax.training.flops import matrix_flops
from imagen_jax.types import TextCond

TEXT_LENGTH, TEXT_DIM = 6, 16


def tiny_stage(model: EfficientUNetConfig | None = None) -> StageConfig:
    model = model or EfficientUNetConfig(
        channels=(8, 16),
        num_res_blocks=(1, 1),
        strides=(2, 2),
        self_attention=(False, True),
        text_attention=("none", "joint"),
        head_dim=16,
    )
    return StageConfig(
        resolution=16,
        model=model,
        train=TrainConfig(batch_size=4, learning_rate=1e-3, warmup_steps=0),
    )


def tiny_cascade(low_resolution: int = 0, model: EfficientUNetConfig | None = None):
    """A cascade whose last stage, "stage", is the tiny one."""
    stage = dataclasses.replace(tiny_stage(model), low_resolution=low_resolution)
    stages = {"stage": stage}
    if low_resolution:
        stages["base"] = dataclasses.replace(tiny_stage(model), resolution=low_resolution)
    return CascadeConfig(text=TextConfig(max_length=TEXT_LENGTH), stages=stages)


def size_and_flops(model, resolution: int, text_length: int = TEXT_LENGTH) -> tuple[int, int]:
    """Number of parameters, and FLOPs of the forward pass for one picture."""

    def leaf(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    def forward(params, z, level, text):
        condition = {"low_res": z, "aug_level": level} if model.low_res else {}
        features = project_text(model, params, text)
        return apply_network(model, params, z, level, features, **condition)

    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    text = TextCond(
        tokens=leaf(1, text_length, model.text_dim), mask=leaf(1, text_length, dtype=jnp.bool_)
    )
    side = resolution
    flops = matrix_flops(forward, params, leaf(1, side, side, 3), leaf(1), text)
    return sum(x.size for x in jax.tree.leaves(params)), flops
