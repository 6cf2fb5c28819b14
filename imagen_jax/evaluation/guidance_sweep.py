"""The figures of a cascade by guidance weight and kind of threshold (Imagen section 2.3, Fig. A.9).

The same prompts and seeds are drawn for every guidance weight and every threshold of the first
stage. Each cell is an evaluation in its own directory, so an interrupted sweep continues. Written
are `sweep.json` and, for each stage that the scorer can read, a plot: accepted share, saturation,
clipped pixels, diversity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from imagen_jax.config import DataConfig
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.thresholding import THRESHOLDS
from imagen_jax.errors import UserError
from imagen_jax.evaluation.evaluate import Request, evaluate
from imagen_jax.evaluation.prompt_set import PromptSet
from imagen_jax.files import write_json
from imagen_jax.sampling import Cascade

# Names in the plot, and where a stage's report has the figure.
FIGURES = {
    "accepted": lambda stage: _accepted(stage)["share"],
    "saturation": lambda stage: stage["pictures"]["saturation"],
    "clipped pixels": lambda stage: stage["pictures"]["clipped_share"],
    "diversity": lambda stage: stage["pictures"]["diversity"],
}


def sweep(
    cascade: Cascade,
    data: DataConfig,
    prompts: PromptSet,
    request: Request,
    weights: Sequence[float],
    out: Path,
) -> None:
    """Evaluates every cell; pictures that exist are not drawn again.

    Args:
      cascade, data, prompts, request: see `evaluate`; of the first stage of the request, guidance
        and threshold are replaced.
      weights: guidance weights.
      out: directory of the sweep; each cell has a directory below it.

    Raises:
      UserError: the plot needs matplotlib, and it is not installed; see `evaluate`.
    """
    _check_plots()
    first = next(iter(request.sampling))
    cells = []
    for threshold in THRESHOLDS:
        for weight in weights:
            print(f"\n{threshold.kind}, w = {weight:g}", flush=True)
            changed = dataclasses.replace(
                request.sampling[first], guidance=Guidance(weight), threshold=threshold()
            )
            cell = dataclasses.replace(request, sampling=request.sampling | {first: changed})
            place = out / f"{threshold.kind}_w{weight:g}"
            report = evaluate(cascade, data, prompts, cell, place)
            figures = {name: _figures(stage) for name, stage in report["stages"].items()}
            cells.append(
                {"threshold": threshold.kind, "guidance_weight": weight, "stages": figures}
            )
    about = {
        "weights_sha256": {name: cascade.artefact.stages[name].sha256 for name in request.sampling},
        "num_prompts": len(prompts.prompts),
        "cells": cells,
    }
    write_json(epath.Path(out / "sweep.json"), about)
    for stage, figures in cells[0]["stages"].items():
        if figures["accepted"] is not None:
            plot(cells, stage, out / f"sweep_{stage}.png")


def _check_plots() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the plot of a sweep needs matplotlib: pip install 'imagen-jax[plots]'"
        ) from error


def _figures(stage: dict[str, Any]) -> dict[str, Any]:
    """The figures of a stage, and the interval of the accepted share; None without a scorer."""
    figures = {name: read(stage) for name, read in FIGURES.items()}
    return figures | {"interval": _interval(stage)}


def _accepted(stage: dict[str, Any]) -> dict[str, Any]:
    if "accuracy" not in stage:
        return {"share": None, "low": None, "high": None}
    return stage["accuracy"]["all"]["accepted"]


def _interval(stage: dict[str, Any]) -> list[float] | None:
    accepted = _accepted(stage)
    return None if accepted["share"] is None else [accepted["low"], accepted["high"]]


def plot(cells: Sequence[dict[str, Any]], stage: str, path: Path) -> None:
    """Plots the figures of one stage against the guidance weight, one line a threshold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(FIGURES), figsize=(4 * len(FIGURES), 3.4))
    for axis, name in zip(axes, FIGURES, strict=True):
        for threshold in dict.fromkeys(cell["threshold"] for cell in cells):
            line = [cell for cell in cells if cell["threshold"] == threshold]
            x = [cell["guidance_weight"] for cell in line]
            axis.plot(
                x, [cell["stages"][stage][name] for cell in line], marker=".", label=threshold
            )
            if name == "accepted":
                low, high = zip(*(cell["stages"][stage]["interval"] for cell in line), strict=True)
                axis.fill_between(x, low, high, alpha=0.15)
        axis.set_title(name)
        axis.set_xlabel("guidance weight w")
        axis.set_ylim(bottom=0)
    axes[0].legend(title="threshold")
    figure.suptitle(stage)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
