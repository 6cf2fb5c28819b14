"""What a stronger text encoder is worth: one base stage trained with encoders of three strengths.

    python -m benchmarks.text_strength --config=configs/text_strength.py [--num_steps=N] [--seeds=2]

`words`: the embedded encoder without what its layers add, so each token is its word and no more (a
bag of words). `random`: its shape with random weights, frozen. `embedded`: as it ships. Everything
else, the order of the pictures and all noise included, is the same.

Prints a Markdown table: the validation loss by log-SNR, how much the error rises when one thing in
the caption is wrong (`benchmarks/caption_edits.py`), and the held-out prompts obeyed, in all and by
part. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from benchmarks.caption_edits import EDITS, rises
from benchmarks.denoising_error import load_denoiser
from imagen_jax.cli.common import setup_jax
from imagen_jax.config import CascadeConfig, load_config
from imagen_jax.evaluation.caption_accuracy import ALL
from imagen_jax.evaluation.evaluate import Request, evaluate
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.shapes_scorer import PARTS
from imagen_jax.files import write_json
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.sampling import Cascade
from imagen_jax.text import t5_load
from imagen_jax.text.encoder import EMBEDDED_DIRECTORY, load_encoder
from imagen_jax.text.t5 import T5Encoder
from imagen_jax.text.tokenizer import SENTENCEPIECE
from imagen_jax.training.interrupt import StopSignal
from imagen_jax.training.loop import train_stage

STRENGTHS = ("words", "random", "embedded")


def write_encoder(strength: str, directory: Path) -> Path:
    """The directory of an encoder of that strength; made below `directory` if need be."""
    if strength == "embedded":
        return EMBEDDED_DIRECTORY
    out = directory / strength
    out.mkdir(parents=True, exist_ok=True)
    config = t5_load.read_config(EMBEDDED_DIRECTORY)
    if strength == "random":
        ids = jnp.zeros((1, 2), jnp.int32)
        params = T5Encoder(config).init(jax.random.key(0), ids, ids == 0)["params"]
    else:
        params = t5_load.load_params(EMBEDDED_DIRECTORY, config)
        for part, name in (("attention", "out"), ("feed_forward", "down")):
            kernel = params["blocks"][part][name]
            params["blocks"][part][name] = {"kernel": jnp.zeros_like(kernel["kernel"])}
    t5_load.save_params(out, config, params)
    shutil.copy(EMBEDDED_DIRECTORY / SENTENCEPIECE, out)
    return out


def train(config: CascadeConfig, stage: str, workdir: Path) -> dict[str, float]:
    """Trains one stage; returns its last validation loss, in all and by log-SNR."""
    mesh = make_mesh(config.mesh)
    encoder = load_encoder(config.text, mesh=mesh)
    with StopSignal() as stop:
        if train_stage(config, stage, epath.Path(workdir), encoder, mesh, stop):
            sys.exit("Stopped; the same command goes on.")
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").open()]
    last = next(line for line in reversed(lines) if "validation_loss" in line)
    return {"all": last["validation_loss"], **last["validation_loss_by_logsnr"]}


def measure(
    config: CascadeConfig, stage: str, workdir: Path, num_prompts: int, num_scenes: int
) -> dict[str, Any]:
    """What the trained stage makes of its captions; kept beside it, JSON-like."""
    # By the number of steps, since a longer run goes on in the same directory.
    name = f"{config.stages[stage].train.num_steps}_{num_prompts}_{num_scenes}"
    kept = workdir / f"measured_{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    denoiser = load_denoiser(str(workdir), stage)
    changes = {name: dataclasses.asdict(rise) for name, rise in rises(denoiser, num_scenes).items()}
    cascade = Cascade.from_directory(workdir)
    report = evaluate(
        cascade,
        config.data,
        load_prompts(config.data, num_prompts),
        Request(sampling={stage: cascade.settings(stage)}, num_true=1),
        workdir / f"evaluation_{name}",
    )
    result = {"rises": changes, "accuracy": report["stages"][stage]["accuracy"]}
    write_json(kept, result)
    return result


def table(columns: dict[str, dict[str, Any]]) -> str:
    """Markdown: a column a run; `columns` has what `train` gives as "loss" and what `measure` does.

    A row that no run has is left out; a part that one run's prompts claim, all claim.
    """
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]

    def row(title: str, cells: Sequence[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    runs = list(columns.values())
    for bucket in runs[0]["loss"]:
        title = "validation loss" if bucket == "all" else f"at log-SNR {bucket.replace('_', ' ')}"
        row(title, [f"{run['loss'][bucket]:.4f}" for run in runs])
    for name in EDITS:
        found = [run["rises"][name] for run in runs]
        row(
            f"error with another {name}, %",
            # Not "-0.0" where nothing is read.
            [f"{round(rise['mean'], 1) + 0.0:+.1f} ({rise['error']:.1f})" for rise in found],
        )
    for part in ("accepted", *PARTS):
        everything = [run["accuracy"][ALL] for run in runs]
        shares = [
            one["accepted"] if part == "accepted" else one["parts"].get(part) for one in everything
        ]
        if all(shares):
            title = "prompts obeyed" if part == "accepted" else f"{part} as asked for"
            row(f"{title}, of {shares[0]['total']}", [str(one["hits"]) for one in shares])
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_strength")
    parser.add_argument("--config", default="configs/text_strength.py")
    parser.add_argument("--num_steps", type=int, help="default: the config's")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each encoder")
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--num_scenes", type=int, default=256, help="of each kind")
    parser.add_argument("--out", default="runs/text_strength", metavar="DIR")
    flags = parser.parse_args(arguments)
    setup_jax()
    config, out = load_config(flags.config), Path(flags.out)
    name, stage = next(iter(config.ordered_stages().items()))
    steps = flags.num_steps or stage.train.num_steps
    stage = dataclasses.replace(stage, train=dataclasses.replace(stage.train, num_steps=steps))
    columns = {}
    for seed in range(flags.seeds):
        for strength in STRENGTHS:
            text = dataclasses.replace(
                config.text, encoder=str(write_encoder(strength, out / "encoders"))
            )
            run = dataclasses.replace(config, seed=seed, text=text, stages={name: stage})
            workdir = out / f"{strength}_{seed}"
            loss = train(run, name, workdir)
            measured = measure(run, name, workdir, flags.num_prompts, flags.num_scenes)
            columns[f"{strength}, seed {seed}"] = {"loss": loss, **measured}
    print(
        f"\n{steps:,} steps of {stage.train.batch_size} pictures, {flags.num_scenes} scenes of "
        f"each kind, {flags.num_prompts} prompts\n\n{table(columns)}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
