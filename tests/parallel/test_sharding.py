"""The mesh and the rule by which arrays are laid out."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from imagen_jax.config import MeshConfig
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import (
    batch_sharding,
    batch_shards,
    choose_fsdp,
    count_islands,
    make_mesh,
    memory_of,
)
from imagen_jax.parallel.sharding import partition_spec, tree_shardings


def test_an_axis_of_minus_one_takes_the_remaining_devices():
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
        ("a/kernel", (128, 256), (None, "fsdp")),
        ("a/kernel", (256, 256), (None, "fsdp")),  # a tie: output channels
        ("a/kernel", (256, 31), ("fsdp",)),
        ("a/query/kernel", (128, 256), ("fsdp", "tensor")),
        ("text/down_1/value/kernel", (256, 64), ("fsdp", "tensor")),
        ("a/blocks/attention/out/kernel", (2, 256, 128), (None, "tensor", "fsdp")),
        ("a/query/kernel", (128, 67), ("fsdp",)),  # heads that do not divide stay whole
        ("shape_out/kernel", (128, 256), (None, "fsdp")),
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


@pytest.mark.parametrize(
    "state_gib, memory_gib, within, fsdp",
    [
        (1, 16, 8, 1),
        (4, 16, 8, 1),  # exactly a quarter
        (5, 16, 8, 2),
        (29, 32, 256, 4),  # the paper's base on TPU v4
        (29, 16, 12, 12),  # divisors of 12 are 1, 2, 3, 4, 6, 12
        (1000, 16, 8, 8),  # the most that is possible
        (1000, None, 8, 1),  # unknown memory
    ],
)
def test_fsdp_is_the_least_that_leaves_room(state_gib, memory_gib, within, fsdp):
    memory = None if memory_gib is None else memory_gib * 2**30
    assert choose_fsdp(state_gib * 2**30, memory, within) == fsdp


@dataclasses.dataclass(frozen=True)
class FakeChip:
    """As much of a TPU device as the layout of a mesh looks at."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"

    def memory_stats(self):
        raise RuntimeError("not there")


def chips(slices: int, side: int) -> list[FakeChip]:
    return [
        FakeChip(id=len_ * side**2 + y * side + x, slice_index=len_, coords=(x, y, 0))
        for len_ in range(slices)
        for y in range(side)
        for x in range(side)
    ]


@pytest.mark.parametrize(
    "config, shape",
    [
        (MeshConfig(), {"data": 8, "fsdp": 1, "tensor": 1}),
        (MeshConfig(fsdp=4), {"data": 2, "fsdp": 4, "tensor": 1}),
        (MeshConfig(fsdp=2, tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_only_data_goes_between_slices(config, shape):
    mesh = make_mesh(config, chips(slices=2, side=2))
    assert dict(mesh.shape) == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    slices = [[chip.slice_index for chip in row.flat] for row in mesh.devices]
    assert all(len(set(row)) == 1 for row in slices)
    # The first half of the data axis is one slice, so that the slow network joins halves.
    assert [row[0] for row in slices] == sorted(row[0] for row in slices)


def test_fsdp_is_chosen_within_a_slice_from_the_memory_of_its_chips():
    devices = chips(slices=2, side=2)
    assert memory_of(devices[0]) == 15.75 * 2**30
    assert make_mesh(MeshConfig(), devices, state_bytes=7 * 2**30).shape["fsdp"] == 2
    assert make_mesh(MeshConfig(), devices, state_bytes=99 * 2**30).shape["fsdp"] == 4


def test_machines_of_gpus_are_islands_with_a_process_for_each_gpu_or_for_all():
    slices = chips(slices=2, side=2)
    for process_of in (lambda chip: chip.id, lambda chip: chip.slice_index):
        gpus = [
            dataclasses.replace(chip, platform="gpu", process_index=process_of(chip))
            for chip in slices
        ]
        assert count_islands(gpus) == 2
        mesh = make_mesh(MeshConfig(fsdp=4), gpus)
        assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
        assert [{gpu.slice_index for gpu in row.flat} for row in mesh.devices] == [{0}, {1}]


def test_fsdp_across_slices_is_refused():
    with pytest.raises(UserError, match="multiple of 2"):
        make_mesh(MeshConfig(data=1, fsdp=8), chips(slices=2, side=2))


def test_every_array_can_be_laid_out_as_the_rule_says():
    mesh = make_mesh(MESH)
    tree = {
        "blocks": {"query": {"kernel": jnp.zeros((3, 64, 96))}},
        "b": [jnp.zeros((5, 7)), jnp.zeros(())],
    }
    placed = jax.device_put(tree, tree_shardings(tree, mesh))
    kernel = placed["blocks"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.size == 3 * 64 * 96 // 8
    batch = jax.device_put(jnp.zeros((8, 2)), batch_sharding(mesh))
    assert batch.sharding.spec == PartitionSpec(("data", "fsdp"))
