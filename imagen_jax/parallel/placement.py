"""Makes global arrays from the memory of each process: rows of a batch, and replicated arrays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.parallel.mesh import batch_sharding, replicated
from imagen_jax.types import Array


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a pytree of arrays, equal in all processes, whole on every device of the mesh."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Array:
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value)

    return jax.tree.map(put, tree)


class BatchRows:
    """The rows of a global batch that belong to this process's devices.

    They are read from the sharding, because a process does not always have consecutive rows of its
    own: "tensor" does not split the batch and may span processes, which then hold the same rows.

    Args:
      mesh: the devices.
      batch_size: of the global batch; a multiple of `batch_shards(mesh)`.

    Attributes:
      local: `[b]` int, this process's rows in ascending order.
      counted: `[b]` bool, True for the rows that no process of a lower index has.
    """

    def __init__(self, mesh: Mesh, batch_size: int):
        self._sharding = batch_sharding(mesh)
        self._batch_size = batch_size
        rows_of: dict[int, set[int]] = {}
        for device, index in self._sharding.devices_indices_map((batch_size,)).items():
            rows = range(*index[0].indices(batch_size))
            rows_of.setdefault(device.process_index, set()).update(rows)
        here = jax.process_index()
        self.local = np.array(sorted(rows_of[here]))
        before = set().union(*(rows for process, rows in rows_of.items() if process < here))
        self.counted = np.array([row not in before for row in self.local.tolist()])

    def global_array(self, local: np.ndarray) -> Array:
        """The global array `[B, ...]` from this process's rows `local` `[b, ...]`."""

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(self._batch_size)
            first = np.searchsorted(self.local, start)
            return local[first : first + stop - start]

        shape = (self._batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, self._sharding, shard)
