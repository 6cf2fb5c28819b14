"""Compiled programs send parameters and sums between devices, never rows of the batch."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from stages import opened

from imagen_jax.config import (
    DiffusionConfig,
    MeshConfig,
    SampleConfig,
    StageConfig,
    TrainConfig,
)
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.models import EfficientUNetConfig, UNetConfig
from imagen_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from imagen_jax.parallel.sharding import tree_shardings
from imagen_jax.sampling.loop import make_settings, picture_keys, sampler_program, static_arguments
from imagen_jax.stage import Stage
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.state import abstract_state
from imagen_jax.training.step import make_train_step
from imagen_jax.types import Batch, TextCond

pytestmark = pytest.mark.slow

# Not a power of two, as all sizes of parameters are: a part of the batch is known by its shape.
BATCH, SIDE, LENGTH, TEXT_DIM = 24, 16, 5, 16
MESHES = {
    "8 data": MeshConfig(data=8, fsdp=1),
    "4 data x 2 fsdp": MeshConfig(data=4, fsdp=2),
    "8 fsdp": MeshConfig(data=1, fsdp=8),
    "2 data x 2 fsdp x 2 tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}
MODELS = {
    "efficient_unet": EfficientUNetConfig(
        channels=(32,),
        num_res_blocks=(2,),
        strides=(2,),
        self_attention=(True,),
        text_attention=("joint",),
        head_dim=16,
    ),
    "unet": UNetConfig(
        channels=(32, 32),
        num_res_blocks=(1, 1),
        self_attention=(False, True),
        text_attention=("none", "cross"),
        head_dim=16,
    ),
}
# Each takes the compiler some seconds.
CASES = [
    ("efficient_unet", 8, "8 fsdp"),
    ("efficient_unet", 8, "2 data x 2 fsdp x 2 tensor"),
    ("unet", 0, "4 data x 2 fsdp"),
]


def stage_of(kind: str, low_resolution: int) -> Stage:
    config = StageConfig(
        resolution=SIDE,
        low_resolution=low_resolution,
        model=MODELS[kind],
        diffusion=DiffusionConfig(),
        train=TrainConfig(batch_size=BATCH),
        sample=SampleConfig(num_steps=3, guidance=Guidance(3.0)),
    )
    return opened(config, TEXT_DIM)


def spread(shape, dtype, mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))


def text_on(mesh) -> TextCond:
    return TextCond(
        tokens=spread((BATCH, LENGTH, TEXT_DIM), jnp.float32, mesh),
        mask=spread((BATCH, LENGTH), jnp.bool_, mesh),
    )


def parts_of(params, mesh) -> set[tuple[int, ...]]:
    """Shapes, in ascending order, of the parameters and of their parts on any axes of the mesh."""
    sizes = mesh.shape.values()
    cuts = {math.prod(some) for n in range(4) for some in itertools.combinations(sizes, n)}
    shapes = set()
    for leaf in jax.tree.leaves(params):
        # Layers of a stack travel one by one, too.
        for shape in (leaf.shape, leaf.shape[1:]):
            for divisors in itertools.product(cuts, repeat=len(shape)):
                shapes.add(tuple(sorted(n // by for n, by in zip(shape, divisors, strict=True))))
    return shapes


def check(program: str, params, mesh) -> None:
    """Asserts that nothing but parameters moves; sums (all-reduce, reduce-scatter) may."""
    assert "all-to-all" not in program
    moves = re.findall(
        r"= (.*?) (?:all-gather|collective-permute|collective-broadcast)(?:-start)?\(", program
    )
    assert bool(moves) == (mesh.shape["data"] < 8)
    allowed = parts_of(params, mesh)
    for result in moves:
        for dimensions in re.findall(r"\[([\d,]*)\]", result):
            shape = tuple(sorted(int(n) for n in dimensions.split(",") if n and n != "1"))
            assert any(shape == tuple(n for n in part if n != 1) for part in allowed), (
                f"{result} is no part of a parameter"
            )


@pytest.mark.parametrize(
    "kind, low_resolution, mesh_name", [*CASES, ("efficient_unet", 8, "8 data")]
)
def test_the_train_step_moves_parameters_only(kind, low_resolution, mesh_name):
    stage, mesh = stage_of(kind, low_resolution), make_mesh(MESHES[mesh_name])
    model, optimizer = stage.network, make_optimizer(stage.config.train)
    state = abstract_state(model, optimizer, mesh)
    batch = Batch(image=spread((BATCH, SIDE, SIDE, 3), jnp.uint8, mesh), text=text_on(mesh))
    step = jax.jit(
        make_train_step(stage, optimizer),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)),
    )
    with jax.set_mesh(mesh):
        program = step.lower(state, batch, jax.random.key(0)).compile().as_text()
    check(program, state.params, mesh)


@pytest.mark.parametrize("kind, low_resolution, mesh_name", CASES)
def test_the_sampler_moves_parameters_only(kind, low_resolution, mesh_name):
    stage, mesh = stage_of(kind, low_resolution), make_mesh(MESHES[mesh_name])
    shapes = stage.abstract_params()
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )
    keys = jax.eval_shape(lambda: picture_keys(jnp.arange(BATCH), 0))
    low_res = None
    if low_resolution:
        low_res = spread((BATCH, low_resolution, low_resolution, 3), jnp.float32, mesh)
    with jax.set_mesh(mesh):
        lowered = sampler_program().lower(
            params,
            text_on(mesh),
            spread(keys.shape, keys.dtype, mesh),
            make_settings(stage.config.sample),
            low_res,
            **static_arguments(stage, (SIDE, SIDE)),
        )
        program = lowered.compile().as_text()
    check(program, params, mesh)
