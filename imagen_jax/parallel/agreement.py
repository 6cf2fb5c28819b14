"""Exchanges small values between the processes of a job, so that all take the same decisions.

If one process alone stops, or alone considers a checkpoint damaged, the others wait forever in
their next collective. So such facts are exchanged through the devices. A single process sends
nothing.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_BLOCK = 1024


class Agreement:
    """Exchanges values between all processes; all must call the same methods in the same order."""

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        devices = jax.devices()
        mesh = Mesh(np.array(devices), ("devices",), axis_types=(AxisType.Auto,))
        self._scattered = NamedSharding(mesh, PartitionSpec("devices"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._num_devices = len(devices)
        # Arrays have one row per device; the first device of a process carries its values.
        processes = [device.process_index for device in devices]
        self._first_device = [processes.index(process) for process in range(jax.process_count())]
        self._replicate = jax.jit(lambda rows: rows, out_shardings=everywhere)

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, in the order of their index; waits for all of them."""
        if self._alone:
            return [value]
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = self.read(self.post([len(data)]))[:, 0]
        # Whole blocks, so that few sizes are compiled.
        row = np.zeros(-(-int(sizes.max()) // _BLOCK) * _BLOCK, np.int32)
        row[: len(data)] = data
        rows = self.read(self.post(row)).astype(np.uint8)
        return [
            json.loads(rows[process, :size].tobytes())
            for process, size in enumerate(sizes.tolist())
        ]

    def from_main(self, value: Any) -> Any:
        """The JSON value of process 0; that of the others is ignored."""
        return self.gather(value if jax.process_index() == 0 else None)[0]

    def post(self, row: Any) -> jax.Array:
        """Starts to exchange `row`, int32 `[n]`; `read` gives the result."""
        row = np.asarray(row, np.int32)[None]
        shape = (self._num_devices, row.shape[1])
        rows = self._replicate(
            jax.make_array_from_callback(shape, self._scattered, lambda index: row)
        )
        rows.copy_to_host_async()
        return rows

    def read(self, rows: jax.Array) -> np.ndarray:
        """Waits for a `post`; returns the rows of all processes, `[processes, n]`."""
        return np.asarray(rows)[self._first_device]
