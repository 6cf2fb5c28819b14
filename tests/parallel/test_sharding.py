"""The mesh and the rule by which arrays are laid out."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from imagen_jax.config import MeshConfig
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh
from imagen_jax.parallel.sharding import partition_spec, tree_shardings


def test_what_is_left_over_goes_to_minus_one():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert batch_shards(mesh) == 4


@pytest.mark.parametrize(
    "config", [MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(data=0), MeshConfig(fsdp=-1)]
)
def test_a_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(UserError, match="mesh data="):
        make_mesh(config)


MESH = MeshConfig(data=1, fsdp=4, tensor=2)


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("a/kernel", (128, 256), ("tensor", "fsdp")),
        ("a/kernel", (256, 256), ("tensor", "fsdp")),  # a tie: output channels
        ("a/kernel", (256, 31), ("fsdp",)),
        ("a/kernel", (3, 3, 64, 128), (None, None, None, "fsdp")),
        ("a/kernel", (3, 3, 256, 3), (None, None, "fsdp")),
        ("a/kernel", (3, 3, 128, 3), ()),  # small: whole
        ("a/blocks/kernel", (8, 3, 3, 64, 64), (None, None, None, None, "fsdp")),
        ("a/blocks/bias", (64, 67), ()),  # the layer axis stays whole, 67 does not divide
        ("a/bias", (128,), ()),
    ],
)
def test_the_largest_divisible_axis_is_sharded(path, shape, spec):
    have = partition_spec(path, shape, make_mesh(MESH))
    assert tuple(have) + (None,) * (len(shape) - len(have)) == spec + (None,) * (
        len(shape) - len(spec)
    )


def test_every_array_can_be_laid_out_as_the_rule_says():
    mesh = make_mesh(MESH)
    tree = {"blocks": jnp.zeros((3, 64, 96)), "b": [jnp.zeros((5, 7)), jnp.zeros(())]}
    placed = jax.device_put(tree, tree_shardings(tree, mesh))
    assert placed["blocks"].addressable_shards[0].data.size == 3 * 64 * 96 // 8
    batch = jax.device_put(jnp.zeros((8, 2)), batch_sharding(mesh))
    assert batch.sharding.spec == PartitionSpec(("data", "fsdp"))
