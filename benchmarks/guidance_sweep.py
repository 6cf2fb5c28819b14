"""Guidance weight against thresholding: does the paper's argument hold for a small cascade?

    python -m benchmarks.guidance_sweep --num_prompts=100 --out=outputs/guidance_sweep

Draws the same prompts with the same seeds for every guidance weight and every way of thresholding
(Imagen section 2.3 and Fig. A.9) at the first stage, and writes `sweep.json` and a plot for each
stage that is scored (32 pixels or more): accepted share, saturation, clipped pixels, diversity.
Each cell is an evaluation in a directory of its own, so a sweep that was interrupted goes on where
it was. The plot needs matplotlib (the `plots` extra).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen_jax.config import SampleConfig
from imagen_jax.errors import UserError
from imagen_jax.evaluation.evaluate import Request, evaluate
from imagen_jax.evaluation.prompt_set import PromptSet
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.scorer import scorer_of
from imagen_jax.files import write_json
from imagen_jax.sampling import Cascade

WEIGHTS = tuple(float(w) for w in range(1, 16))
THRESHOLDS = ("none", "static", "dynamic")
# Name in the plot, and how to find the figure in a stage of a report.
FIGURES = {
    "accepted": lambda stage: _accepted(stage)["share"],
    "saturation": lambda stage: stage["pictures"]["saturation"],
    "clipped pixels": lambda stage: stage["pictures"]["clipped_share"],
    "diversity": lambda stage: stage["pictures"]["diversity"],
}


def sweep(
    cascade: Cascade,
    prompts: PromptSet,
    chain: Sequence[str],
    weights: Sequence[float],
    out: Path,
) -> list[dict[str, Any]]:
    """Evaluates every cell; those that are done are only measured again.

    Args:
      chain: stages to run. The first stage's settings are swept, later ones keep theirs.
      weights: guidance weights.
      out: a directory; each cell gets one below it.

    Returns: a dict for each cell: `threshold`, `guidance_weight`, and by stage the figures;
      `accepted` and its `interval` are None where the stage is too small for the scorer.
    """
    cells = []
    for threshold in THRESHOLDS:
        for weight in weights:
            print(f"\n{threshold}, w = {weight:g}", flush=True)
            first: SampleConfig = dataclasses.replace(
                cascade.settings(chain[0]), guidance_weight=weight, threshold=threshold
            )
            sampling = {name: cascade.settings(name) for name in chain} | {chain[0]: first}
            request = Request(sampling=sampling, num_true=len(prompts.groups))
            cell = out / f"{threshold}_w{weight:g}"
            report = evaluate(cascade, cascade.artefact.config.data, prompts, request, cell)
            cells.append(
                {
                    "threshold": threshold,
                    "guidance_weight": weight,
                    "stages": {
                        name: {key: read(stage) for key, read in FIGURES.items()}
                        | {"interval": _interval(stage)}
                        for name, stage in report["stages"].items()
                    },
                }
            )
    return cells


def _accepted(stage: dict[str, Any]) -> dict[str, Any]:
    if "accuracy" not in stage:
        return {"share": None, "low": None, "high": None}
    return stage["accuracy"]["all"]["accepted"]


def _interval(stage: dict[str, Any]) -> list[float] | None:
    accepted = _accepted(stage)
    return None if accepted["share"] is None else [accepted["low"], accepted["high"]]


def plot(cells: Sequence[dict[str, Any]], stage: str, path: Path) -> None:
    """Draws the figures of one stage against the guidance weight, one line a threshold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(FIGURES), figsize=(4 * len(FIGURES), 3.4))
    for axis, name in zip(axes, FIGURES, strict=True):
        for threshold in THRESHOLDS:
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


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", help="a run or exported weights; default: shipped shapes")
    parser.add_argument("--num_prompts", type=int, default=100, help="of each cell (default 100)")
    parser.add_argument("--stages", help="such as base,sr64 (default: all that the weights have)")
    parser.add_argument(
        "--guidance_weights", default=",".join(f"{w:g}" for w in WEIGHTS), help="default 1,2,...,15"
    )
    parser.add_argument("--out", default="outputs/guidance_sweep")
    flags = parser.parse_args(arguments)

    from imagen_jax.cli.common import setup_jax

    try:
        weights = [float(w) for w in flags.guidance_weights.split(",")]
    except ValueError:
        parser.error(f"--guidance_weights={flags.guidance_weights} is not a list of numbers")
    setup_jax()
    try:
        cascade = (
            Cascade.from_directory(flags.workdir) if flags.workdir else Cascade.from_name("shapes")
        )
        if scorer_of(cascade.artefact.config.data) is None:
            raise UserError("only cascades of shapes have a scorer")
        stages = flags.stages.split(",") if flags.stages else None
        chain = cascade.chain(stages, has_picture=False)
        prompts = load_prompts(cascade.artefact.config.data, flags.num_prompts)
        out = Path(flags.out)
        cells = sweep(cascade, prompts, chain, weights, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = {
        "weights_sha256": {name: cascade.artefact.stages[name].sha256 for name in chain},
        "num_prompts": flags.num_prompts,
        "cells": cells,
    }
    write_json(out / "sweep.json", about)
    for stage, figures in cells[0]["stages"].items():
        if figures["accepted"] is not None:
            plot(cells, stage, out / f"sweep_{stage}.png")
    print(f"\nLook at {out}/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
