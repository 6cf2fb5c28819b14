"""Activations stay sharded over the batch, so that kernels are sent and pictures are not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from imagen_jax.config import MeshConfig, load_config
from imagen_jax.models import batch_axis, build_model
from imagen_jax.parallel import mesh as mesh_lib
from imagen_jax.planning.programs import TextShape
from imagen_jax.planning.traffic import read_traffic
from imagen_jax.training.feed import abstract_batch
from imagen_jax.training.loop import lower_step
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.state import abstract_state


def test_the_axes_are_those_of_the_mesh():
    assert batch_axis.BATCH_AXES == mesh_lib.BATCH_AXES


def test_only_a_batch_that_divides_is_cut_and_only_under_a_mesh():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4))
    x = jax.device_put(jnp.ones((3, 16, 5)), NamedSharding(mesh, PartitionSpec()))

    def layout(axis):
        return jax.jit(lambda x: batch_axis.shard_over_batch(x, axis))(x).sharding.spec

    assert layout(1) == PartitionSpec()
    with jax.set_mesh(mesh):
        assert layout(1) == PartitionSpec(None, ("data", "fsdp"))
        assert layout(0) == layout(2) == PartitionSpec()


def kinds_of_collectives(name: str) -> set[str]:
    """Of the train step of a stage of configs/tiny.py whose state is cut in four."""
    config = load_config("configs/tiny.py")
    stage = config.stages[name]
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4))
    text = TextShape(dim=256, max_length=config.text.max_length)
    model = build_model(
        stage.model,
        resolution=stage.resolution,
        low_res=bool(stage.low_resolution),
        text_dim=text.dim,
    )
    optimizer = make_optimizer(stage.train)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=mesh_lib.replicated(mesh))
    lowered = lower_step(
        stage,
        model,
        optimizer,
        abstract_state(model, optimizer, mesh),
        abstract_batch(stage, text, mesh),
        mesh,
        key,
    )
    traffic = read_traffic(lowered.compile().as_text(), mesh.size)
    return {collective.kind for collective in traffic.collectives}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr16"])
def test_no_batch_is_sent_around_by_a_step_whose_state_is_cut(name):
    assert "all-to-all" not in kinds_of_collectives(name)
