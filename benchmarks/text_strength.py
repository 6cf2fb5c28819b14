"""What a stronger text encoder is worth: one base stage trained with encoders of three strengths.

    python -m benchmarks.text_strength --config=configs/shapes.py --num_steps=4000

`words`: the embedded encoder without what its layers add, so each token is its word and no more (a
bag of words). `random`: its shape with random weights, frozen. `embedded`: as it ships. Everything
else, the order of the pictures and all noise included, is the same. Prints the validation loss, how
much the loss gains from the caption, and how many held-out prompts are obeyed. Goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from etils import epath

from imagen_jax.cli.common import setup_jax
from imagen_jax.config import CascadeConfig, load_config
from imagen_jax.evaluation.evaluate import Request, evaluate
from imagen_jax.evaluation.prompts import load_prompts
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
    """Trains one stage; returns its last validation loss and gain from the caption."""
    mesh = make_mesh(config.mesh)
    encoder = load_encoder(config.text, mesh=mesh)
    with StopSignal() as stop:
        if train_stage(config, stage, epath.Path(workdir), encoder, mesh, stop):
            sys.exit("Stopped; the same command goes on.")
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").open()]
    names = ("validation_loss", "conditional_minus_unconditional_loss")
    return {name: next(line[name] for line in reversed(lines) if name in line) for name in names}


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_strength")
    parser.add_argument("--config", default="configs/shapes.py")
    parser.add_argument("--num_steps", type=int, default=4000)
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--out", default="runs/text_strength", metavar="DIR")
    flags = parser.parse_args(arguments)
    setup_jax()
    config, out = load_config(flags.config), Path(flags.out)
    name, stage = next(iter(config.ordered_stages().items()))
    steps = flags.num_steps
    settings = dataclasses.replace(
        stage.train, num_steps=steps, validate_every=steps, log_every=max(1, steps // 20)
    )
    stage = dataclasses.replace(stage, train=settings)
    rows = []
    for strength in STRENGTHS:
        directory = write_encoder(strength, out / "encoders")
        text = dataclasses.replace(config.text, encoder=str(directory))
        run = dataclasses.replace(config, text=text, stages={name: stage})
        result = train(run, name, out / strength)
        cascade = Cascade.from_directory(out / strength)
        report = evaluate(
            cascade,
            config.data,
            load_prompts(config.data, flags.num_prompts),
            Request(sampling={name: cascade.settings(name)}, num_true=1),
            out / strength / "evaluation",
        )
        rows.append((strength, result, report))
    print(f"\n{steps:,} steps of {stage.train.batch_size} pictures, {flags.num_prompts} prompts")
    for strength, result, report in rows:
        values = ", ".join(f"{key} {value:.4f}" for key, value in result.items())
        print(f"{strength:9s} {values}, accepted {accepted(report, name)}")


def accepted(report: dict, stage: str) -> str:
    """How many prompts a stage's pictures obey, with its interval, where the set has a scorer."""
    groups = report["stages"][stage].get("accuracy")
    if not groups:
        return "(no scorer)"
    share = groups["all"]["accepted"]
    interval = f"[{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
    return f"{share['hits']} of {share['total']} {interval}"


if __name__ == "__main__":
    main(sys.argv[1:])
