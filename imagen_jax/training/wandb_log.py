"""Scalars and pictures of a run for Weights & Biases, beside the run's own logs."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Mapping

import numpy as np
from etils import epath

from imagen_jax.config import CascadeConfig, to_json_dict
from imagen_jax.errors import UserError
from imagen_jax.files import is_remote, write_atomically

# Holds the identity of the run, under which a restart continues it.
ID_FILE = "wandb_id"


def open_wandb(directory: epath.Path, cascade: CascadeConfig, stage: str) -> WandbLog | None:
    """A `WandbLog` if the settings name a project, else None."""
    return WandbLog(directory, cascade, stage) if cascade.wandb_project else None


def check_wandb(project: str) -> None:
    """Raises UserError if a project is set and the library is missing."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.wandb_project={project!r} needs wandb: pip install 'imagen-jax[wandb]', or "
            "leave it empty"
        )


class WandbLog:
    """A run of Weights & Biases for one stage; a restart continues the same one.

    Whether and where it is uploaded is up to wandb (`wandb login`, `WANDB_MODE=offline`).

    Args:
      directory: the stage's directory.
      cascade: the settings; `wandb_project` is where the run goes.
      stage: the name of the stage.

    Raises:
      UserError: wandb is not installed, or cannot start.
    """

    def __init__(self, directory: epath.Path, cascade: CascadeConfig, stage: str):
        check_wandb(cascade.wandb_project)
        import wandb

        path = directory / ID_FILE
        if not path.exists():
            write_atomically(path, uuid.uuid4().hex[:16].encode())
        try:
            self._run = wandb.init(
                project=cascade.wandb_project,
                name=f"{cascade.name or directory.parent.name} {stage}",
                group=cascade.name or None,
                id=path.read_text().strip(),
                resume="allow",
                config=to_json_dict(cascade),
                dir=None if is_remote(directory) else os.fspath(directory),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"wandb could not start ({error}): run `wandb login`, or set WANDB_MODE=offline, "
                "or leave config.wandb_project empty"
            ) from error
        self._image = wandb.Image
        # After a restart steps are repeated; wandb's own counter only grows.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by name."""
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a uint8 `[H, W, 3]` picture."""
        self._run.log({name: self._image(picture), "step": step})

    def close(self) -> None:
        """Ends the run, after what is left is uploaded."""
        self._run.finish()
