"""Drawing the pictures of an evaluation into a directory, so that a killed one can go on.

Pictures are drawn in batches whose composition follows from the settings alone, and a batch whose
pictures all lie in the directory is not drawn again: an evaluation that was interrupted ends with
the same files as one that was not. `settings.json` says what the pictures were drawn with; another
evaluation is not let into the same directory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config import SampleConfig, flatten
from imagen_jax.errors import UserError
from imagen_jax.evaluation.prompt_set import Prompt
from imagen_jax.files import write_json
from imagen_jax.pictures import save_png
from imagen_jax.sampling import Cascade
from imagen_jax.sampling.loop import make_settings

SETTINGS_FILE = "settings.json"


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures as PNG files, one for each prompt."""

    path: Path

    def file(self, prompt: Prompt) -> Path:
        return self.path / f"{prompt.name}.png"

    def read(self, prompt: Prompt) -> np.ndarray:
        """`[H, W, 3]` uint8."""
        from PIL import Image

        with Image.open(self.file(prompt)) as image:
            return np.asarray(image.convert("RGB"))

    def read_all(self, prompts: Sequence[Prompt]) -> Iterator[np.ndarray]:
        """The pictures in the order of `prompts`, each `[H, W, 3]` uint8."""
        return (self.read(prompt) for prompt in prompts)

    def write(self, prompt: Prompt, picture: np.ndarray) -> None:
        """Writes `[H, W, 3]` uint8; a kill leaves the whole file or none."""
        save_png(self.file(prompt), picture)


@dataclasses.dataclass(frozen=True)
class Job:
    """Pictures that one stage is to draw.

    Attributes:
      stage: its name.
      prompts: one picture each.
      folder: where the pictures go.
      low_res: where the pictures that they are made from lie; None for the base stage.
      sampling: settings of the stage.
      batch_size: pictures at once, at most.
      cost: of one picture, in any unit common to all jobs.
    """

    stage: str
    prompts: tuple[Prompt, ...]
    folder: Folder
    low_res: Folder | None
    sampling: SampleConfig
    batch_size: int
    cost: int

    def missing(self) -> list[np.ndarray]:
        """The batches that are not wholly drawn, as indices into `prompts`.

        The last batch is filled up with its last picture, so that nothing recompiles.
        """
        total = len(self.prompts)
        size = min(self.batch_size, total)
        rows = [np.minimum(np.arange(s, s + size), total - 1) for s in range(0, total, size)]
        return [r for r in rows if not all(self.folder.file(self.prompts[i]).exists() for i in r)]


def draw(cascade: Cascade, jobs: Sequence[Job], progress: Callable[[int], None]) -> int:
    """Draws what is missing, in order. Returns the number of pictures drawn.

    Args:
      progress: called with the cost of each batch when its pictures are written.

    Raises:
      UserError: pictures are not finite, or a low-resolution picture is missing.
    """
    drawn = 0
    for job in jobs:
        job.folder.path.mkdir(parents=True, exist_ok=True)
        settings = make_settings(job.sampling, job.stage)
        for rows in job.missing():
            prompts = [job.prompts[row] for row in rows]
            pictures = cascade.draw_batch(
                job.stage,
                cascade.encode([prompt.text for prompt in prompts]),
                np.array([prompt.seed for prompt in prompts], np.uint32),
                settings,
                None if job.low_res is None else np.stack(list(job.low_res.read_all(prompts))),
            )
            new = len(set(rows.tolist()))
            for prompt, picture in zip(prompts[:new], pictures, strict=False):
                job.folder.write(prompt, picture)
            drawn += new
            progress(new * job.cost)
    return drawn


def cost_of_missing(jobs: Sequence[Job]) -> int:
    """What `draw` has to do, in the unit of `Job.cost`."""
    return sum(len(set(rows.tolist())) * job.cost for job in jobs for rows in job.missing())


def claim_directory(directory: Path, settings: Mapping[str, Any]) -> None:
    """Makes the directory of an evaluation, or checks that it is of the same one.

    Raises:
      UserError: it holds an evaluation with other settings (the differences are named) or other
        files, or cannot be written.
    """
    path = directory / SETTINGS_FILE
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out={directory} is a file; give a directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_same(directory, json.loads(path.read_text(encoding="utf-8")), settings)
        elif any(directory.iterdir()):
            raise UserError(f"--out={directory} holds other files; give an empty directory")
        else:
            write_json(path, settings)
    except OSError as error:
        raise UserError(f"--out={directory} cannot be written: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged; delete {directory}, or give another --out") from error


def _check_same(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # As it will be read back: tuples are lists there.
    now = flatten(json.loads(json.dumps(now)))
    before = flatten(before)
    changed = [
        f"{key}: {before.get(key, 'not there')} there, {now.get(key, 'not there')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        lines = "\n  ".join(changed)
        raise UserError(
            f"--out={directory} holds an evaluation that is not the same:\n  {lines}\n"
            "Give another --out, or delete the directory"
        )
