"""A picture of an evaluation: true, drawn by each stage, and the training picture nearest to that.

    python -m imagen_jax.cli.evaluate --config=configs/emoji.py --num_prompts=200 --out=EVALUATION
    python -m benchmarks.nearest_grid EVALUATION --rows=10 --out=nearest.png

For data that comes in files (`emoji`, `folder`): the first `--rows` prompts that training showed on
the left, the first that it did not on the right, none picked. Does the cascade draw, or does it
remember? Look.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_source
from imagen_jax.errors import UserError
from imagen_jax.evaluation.drawing import Folder
from imagen_jax.evaluation.evaluate import REPORT_FILE
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.pictures import labelled_grid, save_png


def nearest_grid(directory: Path, rows: int) -> np.ndarray:
    """`[H, W, 3]` uint8: a column of rows of pictures for each group of prompts.

    Raises:
      UserError: no finished evaluation is there, or it names no nearest training pictures.
    """
    try:
        report = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{directory} holds no finished evaluation: {error}") from None
    if "nearest" not in report:
        raise UserError(f"{directory}: nearest training pictures are of data in files only")
    data = DataConfig(**report["settings"]["data"])
    stages = list(report["settings"]["stages"])
    size = max(report["stages"][stage]["resolution"] for stage in stages)
    prompts = load_prompts(data, report["settings"]["num_prompts"])
    training = load_source(data, "train", size)
    found = zip(report["prompts"], prompts.prompts, prompts.true_pictures(size), strict=True)
    groups: dict[str, list[tuple[str, list[np.ndarray]]]] = {}
    for row, prompt, true in found:
        group = groups.setdefault(prompt.group, [])
        if len(group) == rows:
            continue
        drawn = [Folder(directory / "pictures" / stage).read(prompt) for stage in stages]
        item = training.item(row["nearest"]["item"])
        pictures = [true, *drawn, item.image]
        label = f"{prompt.group}: {prompt.text} | nearest: {item.caption}"
        group.append((label, [_enlarged(picture, size) for picture in pictures]))
    grids = [labelled_grid(np.array([p for _, p in g]), [t for t, _ in g]) for g in groups.values()]
    height = max(grid.shape[0] for grid in grids)
    padding = [((0, height - grid.shape[0]), (0, 0), (0, 0)) for grid in grids]
    padded = [np.pad(g, p, constant_values=255) for g, p in zip(grids, padding, strict=True)]
    return np.concatenate(padded, axis=1)


def _enlarged(picture: np.ndarray, size: int) -> np.ndarray:
    """Pixels repeated, so that what a stage drew is seen as it is."""
    factor = size // picture.shape[0]
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("evaluation", type=Path, help="the --out of imagen_jax.cli.evaluate")
    parser.add_argument("--rows", type=int, default=10, help="prompts of each group")
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    flags = parser.parse_args()
    try:
        save_png(flags.out, nearest_grid(flags.evaluation, flags.rows))
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"true, drawn by each stage, nearest training picture: {flags.out}")


if __name__ == "__main__":
    main()
