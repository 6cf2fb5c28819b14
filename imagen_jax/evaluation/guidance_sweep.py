"""Scores of a `shapes` cascade by guidance weight and kind of threshold.

    python -m benchmarks.guidance_sweep --num_prompts=100 --out=outputs/guidance_sweep

Samples the same prompts and seeds for every guidance weight and every threshold of the first stage
(Imagen section 2.3 and Fig. A.9). Writes `sweep.json`, and for each stage that can be scored (32
pixels or more) a plot: accepted share, saturation, clipped pixels, diversity. Each cell is an
evaluation in its own directory, so an interrupted sweep continues. The plot needs matplotlib (the
`plots` extra).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen_jax.config import SampleConfig
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.errors import UserError
from imagen_jax.evaluation.evaluate import Request, evaluate
from imagen_jax.evaluation.prompt_set import PromptSet
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.scorer import scorer_of
from imagen_jax.files import write_json
from imagen_jax.sampling import Cascade

WEIGHTS = tuple(float(w) for w in range(1, 16))
THRESHOLDS = ("none", "static", "dynamic")
# Names in the plot, and where a stage's report has the figure.
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
    """Evaluates every cell; pictures that exist are not drawn again.

    Args:
      chain: stages to run. The sweep changes the settings of the first one.
      weights: guidance weights.
      out: directory of the sweep; each cell gets a directory below it.

    Returns:
      A dict for each cell: `threshold`, `guidance_weight`, and the figures by stage. `accepted` and
      its `interval` are None where the stage is too small for the scorer.
    """
    cells = []
    for threshold in THRESHOLDS:
        for weight in weights:
            print(f"\n{threshold}, w = {weight:g}", flush=True)
            first: SampleConfig = dataclasses.replace(
                cascade.settings(chain[0]), guidance=Guidance(weight), threshold=threshold
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
    """Plots the figures of one stage against the guidance weight, one line a threshold."""
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
    parser.add_argument("--num_prompts", type=int, default=100, help="in each cell (default 100)")
    parser.add_argument("--stages", help="such as base,sr64 (default: all)")
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
            source = cascade.artefact.config.data.source
            raise UserError(
                f"the scorer reads pictures of 'shapes'; these weights are of {source!r}"
            )
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
