"""Scalars and pictures of a run: `metrics.jsonl` and TensorBoard. Written by process 0 only."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from etils import epath


def truncate_jsonl(path: epath.Path, last_step: int) -> None:
    """Drops the lines beyond `last_step`, and a last line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("step", 0) <= last_step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


class RunLog:
    """Appends to `metrics.jsonl` and the TensorBoard events of one stage's directory.

    Args:
      directory: the stage's directory.
      stage: its name, in every record.
      first_step: the step the run continues from; records beyond it belong to a lost future.
    """

    def __init__(self, directory: epath.Path, stage: str, first_step: int):
        # Imported here: it takes half a second, and only training needs it.
        from tensorboardX import SummaryWriter

        self._path = directory / "metrics.jsonl"
        self._stage = stage
        truncate_jsonl(self._path, first_step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """One line `{"step", "stage", ...}`; nested groups become `group/name` in TensorBoard."""
        self._file.write(json.dumps({"step": step, "stage": self._stage, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            group = value if isinstance(value, dict) else {"": value}
            for key, number in group.items():
                self._board.add_scalar(f"{name}/{key}" if key else name, number, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A uint8 `[H, W, 3]` picture for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._board.close()
