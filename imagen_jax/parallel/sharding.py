"""The sharding of parameters, EMA and optimizer state, by one set of rules."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which axis of the arrays with a matching path is sharded over "tensor".

    Attributes:
      pattern: searched in the path, such as "params/down_2/blocks/attention/query/kernel".
      axis: the axis over "tensor", counted from the end; None for no axis.
      why: reason, shown in the table of a run.
    """

    pattern: str
    axis: int | None
    why: str


# The first match applies. XLA's partitioner computes a convolution with both channel axes sharded
# wrongly (seen with jax 0.10.2 on a 2x2x2 mesh), so "tensor" shards the products of attention only,
# as in Megatron: heads are split, and one sum joins them again.
RULES = (
    Rule(r"/(query|key|value)/kernel$", -1, "attention, split by heads"),
    Rule(r"/out/kernel$", -2, "attention, summed over heads"),
    Rule(r"", None, "other"),
)

# Smaller arrays are replicated: gathering them costs more than holding them.
MIN_SHARDED_SIZE = 2**12

# Path component of stacked residual blocks. Their leading axis counts layers and is never sharded,
# since a scan reads one layer at a time.
STACKED = "blocks"


def path_string(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as names joined by "/"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def rule_of(path: str) -> Rule:
    """The first rule whose pattern is found in the path."""
    return next(rule for rule in RULES if re.search(rule.pattern, path))


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of one array of the train state.

    "tensor" takes the axis of the matching rule if it divides it. Then "fsdp" takes the largest
    remaining axis that it divides, the last one (output channels) on ties. Spatial axes of
    convolutions, the layer axis of stacked blocks and small arrays are not sharded.
    """
    spec: list[str | None] = [None] * len(shape)
    if math.prod(shape) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    first = 1 if STACKED in path.split("/") else 0
    candidates = [axis for axis in range(first, len(shape)) if shape[axis] >= 8]

    def divides(name: str, axis: int) -> bool:
        return axis in candidates and spec[axis] is None and shape[axis] % mesh.shape[name] == 0

    rule = rule_of(path)
    if rule.axis is not None and mesh.shape["tensor"] > 1:
        axis = len(shape) + rule.axis
        if divides("tensor", axis):
            spec[axis] = "tensor"
    if mesh.shape["fsdp"] > 1:
        fitting = [axis for axis in candidates if divides("fsdp", axis)]
        if fitting:
            spec[max(fitting, key=lambda axis: (shape[axis], axis))] = "fsdp"
    return PartitionSpec(*spec)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for a pytree of arrays or `ShapeDtypeStruct`s, with the same structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, partition_spec(path_string(path), tuple(leaf.shape), mesh)
        ),
        tree,
    )


# A frozen network is sharded over as few axes of the mesh as bring each device's part below this.
FROZEN_BYTES_PER_DEVICE = 2**30


def frozen_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for the parameters of a frozen network, which has no optimizer to share memory.

    A small network is replicated. A larger one is sharded over "fsdp", then over "tensor" too, then
    over the whole mesh: the largest divisible axis of each array, except the layer axis of stacked
    blocks, so that a scan gathers one layer at a time.

    Args:
      tree: of arrays or `ShapeDtypeStruct`s.
      mesh: the devices.
    """
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    names: tuple[str, ...] = ()
    for names in ((), ("fsdp",), ("fsdp", "tensor"), ("data", "fsdp", "tensor")):
        if total <= FROZEN_BYTES_PER_DEVICE * _extent(mesh, names):
            break

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        first = 1 if STACKED in path_string(path).split("/") else 0
        # If no axis divides over all names, over the last ones only.
        for over in (names[start:] for start in range(len(names))):
            parts = _extent(mesh, over)
            fitting = [a for a in range(first, len(leaf.shape)) if leaf.shape[a] % parts == 0]
            if fitting and leaf.size >= MIN_SHARDED_SIZE:
                axis = max(fitting, key=lambda a: (leaf.shape[a], a))
                return NamedSharding(mesh, PartitionSpec(*[None] * axis, over))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _extent(mesh: Mesh, names: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in names)
