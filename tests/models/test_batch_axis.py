"""Activations stay sharded over the batch, so that kernels are sent and pictures are not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from imagen_jax.config import MeshConfig, load_config
from imagen_jax.models import batch_axis
from imagen_jax.parallel import mesh as mesh_lib
from imagen_jax.planning.traffic import read_traffic
from imagen_jax.stage import open_stage
from imagen_jax.training.program import TrainProgram


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
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4))
    program = TrainProgram(open_stage(config, name, 256), mesh, config.text.max_length)
    traffic = read_traffic(program.lower().compile().as_text(), mesh.size)
    return {collective.kind for collective in traffic.collectives}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr16"])
def test_no_batch_is_sent_around_by_a_step_whose_state_is_cut(name):
    assert "all-to-all" not in kinds_of_collectives(name)
