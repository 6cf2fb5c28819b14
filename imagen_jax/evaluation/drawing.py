"""Draws the pictures of an evaluation into a directory; an interrupted evaluation can be resumed.

The settings alone decide which pictures share a batch, and a batch whose files all exist is not
drawn again. So an interrupted evaluation ends with the same files as an uninterrupted one.
`settings.json` records the settings; an evaluation with other settings is refused the directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config import SampleConfig
from imagen_jax.errors import UserError
from imagen_jax.evaluation.prompt_set import Prompt
from imagen_jax.files import write_json
from imagen_jax.pictures import save_png
from imagen_jax.progress import DrawingProgress, Progress
from imagen_jax.sampling import Cascade
from imagen_jax.sampling.cascade import TEXT
from imagen_jax.sampling.folder import check_same
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

    def can_draw(self, rows: np.ndarray) -> bool:
        """Whether the low-resolution pictures of a batch are there."""
        return self.low_res is None or all(
            self.low_res.file(self.prompts[row]).exists() for row in rows
        )

    @property
    def drawn(self) -> int:
        """The number of pictures that are not in a batch with a missing one."""
        return len(self.prompts) - sum(len(set(rows.tolist())) for rows in self.missing())


def draw(
    cascade: Cascade,
    jobs: Mapping[str, Job],
    callback: Callable[[Progress], None] = lambda progress: None,
) -> int:
    """Draws the missing pictures. Returns their number.

    The first batch of each job comes first, so that the rate of each is known early; then the rest,
    job by job.

    Args:
      cascade: the weights.
      jobs: by name, in an order in which low-resolution pictures come before their enlargements.
      callback: called with the progress; the names of the jobs are its stages.

    Raises:
      UserError: pictures are not finite, or a low-resolution picture is missing.
    """
    missing = {name: job.missing() for name, job in jobs.items()}
    following = DrawingProgress(
        callback,
        totals={name: len(job.prompts) for name, job in jobs.items()},
        done={name: job.drawn for name, job in jobs.items()},
        costs={name: job.cost for name, job in jobs.items()},
    )
    drawn = 0
    compiled = set()
    for name, rows in _in_order(jobs, missing):
        job = jobs[name]
        job.folder.path.mkdir(parents=True, exist_ok=True)
        prompts = [job.prompts[row] for row in rows]
        with contextlib.nullcontext() if compiled else following.compiling(TEXT):
            text = cascade.encode([prompt.text for prompt in prompts])
        pictures = cascade.draw_batch(
            job.stage,
            text,
            np.array([prompt.seed for prompt in prompts], np.uint32),
            make_settings(job.sampling),
            None if job.low_res is None else np.stack(list(job.low_res.read_all(prompts))),
            compiling=None if name in compiled else following.compiling(name),
        )
        compiled.add(name)
        new = len(set(rows.tolist()))
        for prompt, picture in zip(prompts[:new], pictures, strict=False):
            job.folder.write(prompt, picture)
        drawn += new
        following.add(name, new)
    return drawn


def _in_order(
    jobs: Mapping[str, Job], missing: Mapping[str, Sequence[np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The missing batches with the names of their jobs: the first of each job, then the others."""
    started = set()
    for name, batches in missing.items():
        if batches and jobs[name].can_draw(batches[0]):
            started.add(name)
            yield name, batches[0]
    for name, batches in missing.items():
        for rows in batches[1:] if name in started else batches:
            yield name, rows


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
            before = json.loads(path.read_text(encoding="utf-8"))
            check_same(f"--out={directory}", "an evaluation", before, settings)
        elif any(directory.iterdir()):
            raise UserError(f"--out={directory} holds other files; give an empty directory")
        else:
            write_json(path, settings)
    except OSError as error:
        raise UserError(f"--out={directory} cannot be written: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged; delete {directory}, or give another --out") from error
