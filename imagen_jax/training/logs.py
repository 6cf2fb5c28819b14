"""Scalars and pictures of a run: `metrics.jsonl`, TensorBoard and, if it is set, W&B.

Written by process 0 only.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.files import is_remote, write_atomically
from imagen_jax.training.mirror import Mirror
from imagen_jax.training.wandb_log import WandbLog

# Seconds between two flushes of the TensorBoard events.
FLUSH_SECONDS = 20.0


def truncate_jsonl(path: epath.Path, last_step: int) -> None:
    """Drops the lines after `last_step` and lines that are not JSON, as a kill may leave them."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("step", 0) <= last_step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())


class RunLog:
    """Appends to `metrics.jsonl` and the TensorBoard events of one stage's directory.

    A full disk raises OSError, at the latest from `close`.

    Args:
      directory: the stage's directory.
      stage: its name, in every record.
      first_step: the step from which the run continues; later records are dropped, since their
        steps are repeated.
      wandb: gets the same; closed with this.
    """

    def __init__(
        self, directory: epath.Path, stage: str, first_step: int, wandb: WandbLog | None = None
    ):
        path = directory / "metrics.jsonl"
        self._stage = stage
        truncate_jsonl(path, first_step)
        self._wandb = wandb
        self._mirror: Mirror | None = None
        if is_remote(directory):
            self._mirror = Mirror(directory)
            directory = self._mirror.local
            if path.exists():
                path.copy(directory / path.name)
        self._file = (directory / path.name).open("a")
        self._board = _EventFile(directory / "tensorboard", first_step + 1)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line `{"step", "stage", ...}`; groups become `group/name` in TensorBoard.

        A number that is not finite becomes null, since JSON has no such numbers.
        """
        from tensorboardX import summary

        record = {"step": step, "stage": self._stage}
        everything: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, dict):
                record[name] = {key: _finite(number) for key, number in value.items()}
                scalars = {f"{name}/{key}": number for key, number in value.items()}
            else:
                record[name] = _finite(value)
                scalars = {name: value}
            for tag, number in scalars.items():
                self._board.add(step, summary.scalar(tag, number))
            everything |= scalars
        if self._wandb is not None:
            self._wandb.scalars(step, everything)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._mirror is not None:
            self._mirror.upload_if_due()

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a uint8 `[H, W, 3]` picture for TensorBoard."""
        from tensorboardX import summary

        self._board.add(step, summary.image(name, picture, dataformats="HWC"))
        if self._wandb is not None:
            self._wandb.image(step, name, picture)

    def sync(self) -> None:
        """Uploads everything; called with a checkpoint, before which no step is repeated."""
        if self._mirror is not None:
            self._board.flush()
            self._mirror.upload()

    def close(self) -> None:
        """Closes the files and uploads the rest."""
        try:
            self._file.close()
        finally:
            self._board.close()
        if self._wandb is not None:
            self._wandb.close()
        if self._mirror is not None:
            self._mirror.close()


class _EventFile:
    """A TensorBoard file, written by the caller's thread.

    `tensorboardX.SummaryWriter` writes in a thread, which ends at its first error; the eleventh
    event after that would block forever.
    """

    def __init__(self, directory: epath.Path, first_step: int):
        # Imported here: it takes half a second, and only training needs it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        directory.mkdir(parents=True, exist_ok=True)
        self._event = event_pb2.Event
        self._file = EventsWriter(str(directory / "events"))
        self._flushed = 0.0
        # Makes TensorBoard hide the events of earlier files from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(self._event(step=first_step, session_log=start))

    def add(self, step: int, summary: Any) -> None:
        self._file.write_event(self._event(step=step, wall_time=time.time(), summary=summary))
        # Not after every event: a flush waits for the disk.
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
