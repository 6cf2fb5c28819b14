"""Draws the pictures of an evaluation into a directory; an interrupted evaluation can be resumed.

The settings alone decide which pictures share a batch, and a batch whose files all exist is not
drawn again. So an interrupted evaluation ends with the same files as an uninterrupted one.
`settings.json` records the settings; an evaluation with other settings is refused the directory.
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
        """The path of the prompt's picture."""
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
    """Pictures for one stage to draw.

    Attributes:
      stage: name of the stage.
      prompts: one picture is drawn for each.
      folder: where the pictures are written.
      low_res: the low-resolution pictures to enlarge; None for the base stage.
      sampling: settings of the stage.
      batch_size: pictures drawn at once, at most.
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
        """The batches with a missing picture, as indices into `prompts`.

        The last batch is filled up with copies of its last index, so that all batches have one
        size and nothing is compiled again.
        """
        total = len(self.prompts)
        size = min(self.batch_size, total)
        rows = [np.minimum(np.arange(s, s + size), total - 1) for s in range(0, total, size)]
        return [r for r in rows if not all(self.folder.file(self.prompts[i]).exists() for i in r)]


def draw(cascade: Cascade, jobs: Sequence[Job], progress: Callable[[int], None]) -> int:
    """Draws the missing pictures, job by job. Returns their number.

    Args:
      cascade: the weights.
      jobs: in an order in which low-resolution pictures come before their enlargements.
      progress: called with the cost of each batch once its pictures are written.

    Raises:
      UserError: pictures are not finite, or a low-resolution picture is missing.
    """
    drawn = 0
    for job in jobs:
        job.folder.path.mkdir(parents=True, exist_ok=True)
        settings = make_settings(job.sampling)
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
    """The cost of what `draw` still has to do, in the unit of `Job.cost`."""
    return sum(len(set(rows.tolist())) * job.cost for job in jobs for rows in job.missing())


def claim_directory(directory: Path, settings: Mapping[str, Any]) -> None:
    """Creates the directory of an evaluation, or checks that it belongs to the same evaluation.

    Raises:
      UserError: the directory holds an evaluation with other settings (the message names the
        differences) or other files, or cannot be written.
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
    # Through JSON, which turns tuples into lists, as in the stored settings.
    now = flatten(json.loads(json.dumps(now)))
    before = flatten(before)
    changed = [
        f"{key}: {before.get(key, '(absent)')} in the directory, {now.get(key, '(absent)')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        lines = "\n  ".join(changed)
        raise UserError(
            f"--out={directory} holds an evaluation with other settings:\n  {lines}\n"
            "Give another --out, or delete the directory"
        )
