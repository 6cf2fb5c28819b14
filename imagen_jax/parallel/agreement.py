"""What all processes of a job must decide alike, and what one of them has to tell the others.

A process that alone stops, or alone takes a checkpoint for damaged, leaves the rest waiting in
their next collective for ever. So such facts go through the devices, where all see the same. With
one process nothing is sent.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_BLOCK = 1024


class Agreement:
    """Exchanges small values between the processes. All must call the same methods in turn."""

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        devices = jax.devices()
        mesh = Mesh(np.array(devices), ("devices",), axis_types=(AxisType.Auto,))
        self._scattered = NamedSharding(mesh, PartitionSpec("devices"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._number = len(devices)
        # A row per device; each process is heard through the first of its own.
        processes = [device.process_index for device in devices]
        self._speaker = [processes.index(process) for process in range(jax.process_count())]
        self._spread = jax.jit(lambda rows: rows, out_shardings=everywhere)

    def gather(self, value: Any) -> list[Any]:
        """`value`, anything of JSON, of every process in their order; waits for all of them."""
        if self._alone:
            return [value]
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = self.read(self.post([len(data)]))[:, 0]
        # Whole blocks, so that there are few programs.
        row = np.zeros(-(-int(sizes.max()) // _BLOCK) * _BLOCK, np.int32)
        row[: len(data)] = data
        rows = self.read(self.post(row)).astype(np.uint8)
        return [
            json.loads(rows[process, :size].tobytes())
            for process, size in enumerate(sizes.tolist())
        ]

    def from_main(self, value: Any) -> Any:
        """The `value` of process 0, anything of JSON; that of the others does not matter."""
        return self.gather(value if jax.process_index() == 0 else None)[0]

    def post(self, row: Any) -> jax.Array:
        """Sends `row`, int32 `[n]`, to all; `read` gives what came of it."""
        row = np.asarray(row, np.int32)[None]
        shape = (self._number, row.shape[1])
        rows = self._spread(jax.make_array_from_callback(shape, self._scattered, lambda index: row))
        rows.copy_to_host_async()
        return rows

    def read(self, rows: jax.Array) -> np.ndarray:
        """The rows `[processes, n]` of a `post`; waits for them."""
        return np.asarray(rows)[self._speaker]
