"""The files of a run. All processes write checkpoints; process 0 writes everything else.

checkpoints/     the newest whole states; damaged/ holds those that could not be read
ema/             the weights that sampling reads, of the newest checkpoint
metrics.jsonl, tensorboard/
samples/
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from imagen_jax.config import to_json_dict
from imagen_jax.data.identity import Identity
from imagen_jax.errors import UserError
from imagen_jax.files import is_remote
from imagen_jax.parallel.distributed import is_main
from imagen_jax.parallel.mesh import replicated
from imagen_jax.pictures import save_png
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextSource
from imagen_jax.training.checkpoint import Checkpoints, RunInfo
from imagen_jax.training.counters import Saved
from imagen_jax.training.logs import RunLog
from imagen_jax.training.wandb_log import open_wandb
from imagen_jax.weights import artefact


def make_directory(directory: epath.Path) -> None:
    """Makes a stage's directory, and checks at once that all its parts can be written.

    Raises:
      UserError: a part cannot be written, or is a file instead of a directory or the reverse.
      OSError: the directory cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("", "checkpoints", "ema", "samples", "tensorboard", "metrics.jsonl"):
        path = directory / name
        if not path.exists():
            continue
        is_file = name == "metrics.jsonl"
        if path.is_dir() == is_file:
            what = "a directory, not a file" if is_file else "a file, not a directory"
            raise UserError(f"{path} is {what}: move it away, or give another --workdir")
        if not is_remote(path) and not os.access(path, os.W_OK):
            raise UserError(
                f"{path} cannot be written by this user: correct its permissions, or give another "
                "--workdir"
            )


def export_ema(
    directory: epath.Path,
    stage: Stage,
    encoder: TextSource,
    mesh: Mesh,
    saved: Saved,
) -> None:
    """Writes the EMA of a saved state to `directory/ema`, as sampling reads it.

    One array at a time, so that the memory holds no copy of all the weights.
    """
    ema = saved.state.ema_params
    if not is_main():
        for leaf in artefact.reading_order(ema):
            whole_on_main(leaf, mesh)
        return
    training = {
        "steps": saved.step,
        "images_seen": saved.progress.images_before + saved.progress.examples_seen,
        "batch_size": stage.config.train.batch_size,
        "loss": saved.progress.last_loss,
    }
    if stage.cascade.data.aspect_buckets:
        training["shapes"] = stage.cascade.shapes(stage.name)
    artefact.save_stage(
        directory / "ema",
        stage.name,
        stage.cascade,
        ema,
        training,
        encoder.identity,
        encoder.tokenizer_hash,
        read=lambda leaf: whole_on_main(leaf, mesh),
    )


def whole_on_main(leaf: jax.Array, mesh: Mesh) -> np.ndarray | None:
    """A sharded array in the memory of process 0, None in the others; called by all.

    One array at a time: a whole EMA on every device may be more than a device can hold.
    """
    whole = jax.device_put(leaf, replicated(mesh))
    return np.asarray(whole) if is_main() else None


def _open_log(directory: epath.Path, stage: Stage, step: int) -> RunLog:
    return RunLog(directory, stage.name, step, open_wandb(directory, stage.cascade, stage.name))


class Outputs:
    """The files and the progress bar of one stage's run.

    Args:
      directory: of the stage.
      stage: what is trained.
      encoder: identity and tokenizer are written beside the weights.
      mesh: the devices.
      checkpoints: of the stage.
      data: identity of the pictures, by split.
      step: the step that the run continues from; later lines of the logs are dropped.

    Attributes:
      saved_step: the step of the last `save`; before it, the step that the run continues from.
    """

    def __init__(
        self,
        directory: epath.Path,
        stage: Stage,
        encoder: TextSource,
        mesh: Mesh,
        checkpoints: Checkpoints,
        data: dict[str, Identity],
        step: int,
    ):
        from tqdm import tqdm

        self._directory = directory
        self._stage = stage
        self._encoder, self._mesh = encoder, mesh
        self._checkpoints = checkpoints
        self._data = data
        self._is_main = is_main()
        self._log = _open_log(directory, stage, step) if self._is_main else None
        self._bar = tqdm(
            total=stage.config.train.num_steps,
            initial=step,
            desc=stage.name,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            smoothing=0.05,
            disable=not self._is_main,
        )
        self._logged = _AboveBar(self._bar)
        self._shown: dict[str, str] = {}
        self._busy_since: float | None = None
        self.saved_step = step

    def advance(self) -> None:
        """One more step on the bar."""
        self._bar.update(1)

    def busy(self, text: str) -> None:
        """Shows on the bar what the run does beside its steps; "": the steps go on."""
        if not self._is_main:
            return
        name, now = self._stage.name, time.time()
        if text and self._busy_since is None:
            self._busy_since = now
        if not text and self._busy_since is not None:
            # The bar estimates the end from the time of the steps.
            self._bar.start_t += now - self._busy_since
            self._bar.last_print_t += now - self._busy_since
            self._busy_since = None
        self._bar.set_description(f"{name}: {text}" if text else name)

    def print_line(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._is_main:
            self._bar.write(line, file=sys.stderr)

    def skipped(self, step: int) -> None:
        """Warns of a step that was skipped."""
        self.print_line(f"warning: step {step:,} skipped: its loss or gradient is not finite")
        if self._is_main:
            self._log.scalars(step, {"skipped": 1})

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Logs `values`; the bar shows the main ones at its end."""
        if not self._is_main:
            return
        self._log.scalars(step, values)
        self._shown |= {
            label: form.format(values[name])
            for name, label, form in (
                ("loss", "loss", "{:.4f}"),
                ("validation_loss", "held out", "{:.4f}"),
                ("images_per_second", "images/s", "{:.0f}"),
            )
            if name in values
        }
        self._bar.set_postfix(self._shown)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Writes `[H, W, 3]` uint8 pictures by name."""
        if not self._is_main:
            return
        samples = self._directory / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            save_png(samples / f"{step:08d}_{name}.png", picture)
            self._log.image(step, name, picture)

    def save(self, saved: Saved) -> None:
        """Starts a checkpoint and writes the EMA."""
        info = RunInfo(
            config=to_json_dict(self._stage.cascade),
            encoder=self._encoder.identity,
            tokenizer=self._encoder.tokenizer_hash,
            data=self._data,
            progress=saved.progress,
        )
        self._checkpoints.save(saved.step, saved.state, info)
        export_ema(self._directory, self._stage, self._encoder, self._mesh, saved)
        self.saved_step = saved.step
        if self._is_main:
            self._log.sync()

    def close(self) -> None:
        """Closes the files."""
        self._logged.close()
        self._bar.close()
        if self._is_main:
            self._log.close()


class _AboveBar(logging.Handler):
    """Writes the warnings of this package above the bar instead of through it, until `close`."""

    def __init__(self, bar: Any):
        super().__init__()
        self._bar = bar
        self._logger = logging.getLogger("imagen_jax")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True
        super().close()
