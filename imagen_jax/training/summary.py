"""The summary of a run that is printed at its start."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.parallel.sharding import path_string, rule_of
from imagen_jax.stage import Stage
from imagen_jax.training.state import TrainState
from imagen_jax.weights.artefact import typical_images


def count_parameters(params: Any) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def bytes_per_device(tree: Any) -> int:
    """Bytes of one device's shards of arrays or sharded `ShapeDtypeStruct`s."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def human_bytes(size: float) -> str:
    """A size in bytes with its unit, such as "1.5 GiB"."""
    exponent = min(int(math.log(max(size, 1), 1024)), 4)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[exponent]
    return f"{size / 1024**exponent:.1f} {unit}"


def describe_layout(mesh: Mesh, state: TrainState) -> list[str]:
    """One line for each layout of arrays over the mesh, with total size and size per device.

    Empty on one device.
    """
    if mesh.size == 1:
        return []
    groups: dict[str, list[jax.ShapeDtypeStruct]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        axes = [axis for axis in leaf.sharding.spec if axis is not None]
        layout = "sharded over " + " and ".join(axes) if axes else "whole on every device"
        rule = rule_of(path_string(path))
        if "tensor" in axes:
            layout += f" ({rule.why})"
        groups.setdefault(layout, []).append(leaf)
    lines = []
    for layout, leaves in sorted(groups.items(), key=lambda item: -bytes_per_device(item[1])):
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        lines.append(
            f"{layout}: {len(leaves)} arrays, {human_bytes(total)}, "
            f"{human_bytes(bytes_per_device(leaves))} on each device"
        )
    return lines


def describe(stage: Stage, mesh: Mesh, state: TrainState) -> str:
    """The start-up message of one stage.

    Args:
      stage: the stage.
      mesh: the devices.
      state: the abstract train state, with shardings.
    """
    config, train = stage.config, stage.config.train
    total = count_parameters(state.params)
    size = f"{config.resolution}x{config.resolution}"
    task = f"{config.low_resolution} -> {config.resolution}" if stage.factor else size
    shape = " x ".join(f"{axis} {extent}" for axis, extent in mesh.shape.items())
    images = train.batch_size * train.num_steps
    typical = typical_images(total)
    lines = [
        f"Stage {stage.name}: {task}, {config.model.kind}, "
        f"{config.diffusion.prediction} prediction",
        f"  devices     {mesh.size} x {mesh.devices.flat[0].device_kind} ({shape}), "
        f"{jax.process_count()} process(es)",
        f"  parameters  {total:,}",
    ]
    for level, tree in state.params.items():
        lines.append(f"    {level:<10}{count_parameters(tree):>14,}")
    lines += [
        f"  memory      {human_bytes(bytes_per_device(state))} of state per device",
        *(f"    {line}" for line in describe_layout(mesh, state)),
        f"  images      {train.batch_size} a step, {images:,} in {train.num_steps:,} steps; "
        f"{typical:,} are typical for this size ({images / typical:.2%})",
    ]
    return "\n".join(lines)
