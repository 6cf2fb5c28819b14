"""Shows what a stage would be trained on, and whether it comes fast enough.

    python -m imagen_jax.cli.check_data --config=configs/folder.py --path=PICTURES
    python -m imagen_jax.cli.check_data --config=CONFIG.py --stage=base --measure_step

Prints what it found and writes a page with samples and histograms.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.cli.prepare_data import add_source_flags, data_of
from imagen_jax.config import CascadeConfig, load_config
from imagen_jax.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 2, with the message alone, for a UserError."""
    flags = _parser().parse_args(arguments)
    try:
        _check(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imagen_jax.cli.check_data",
        description="Shows what a stage would be trained on, and whether it comes fast enough.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config, as for train.py")
    parser.add_argument("--stage", help="the stage that is to be trained (default: the first)")
    parser.add_argument(
        "--out",
        default="outputs/check_data.html",
        help="the page (default outputs/check_data.html)",
    )
    parser.add_argument("--num_items", type=int, default=10_000, help="at most (default 10000)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="that the loader is timed (default 5)"
    )
    group = parser.add_argument_group("what the loader is compared with")
    group.add_argument(
        "--images_per_second", type=float, help="that the stage's train step consumes, all devices"
    )
    group.add_argument("--num_devices", type=int, default=1, help="of that step (default 1)")
    group.add_argument(
        "--measure_step", action="store_true", help="compile and time the step on these devices"
    )
    add_source_flags(parser.add_argument_group("instead of the config's"))
    return parser


def _check(flags: argparse.Namespace) -> None:
    from absl import flags as absl_flags

    from imagen_jax.data.buckets import BucketedSource, load_stage_source
    from imagen_jax.data.check import examine, loader_rate
    from imagen_jax.data.check_page import Rates, page, summary
    from imagen_jax.data.open import load_source
    from imagen_jax.data.pipeline import batches
    from imagen_jax.progress import ProgressLine

    config = load_config(flags.config)
    data = data_of(flags, config)
    name = flags.stage or next(iter(config.ordered_stages()))
    if name not in config.stages:
        raise UserError(f"--stage={name} is not one of {', '.join(config.stages)}")
    if flags.images_per_second is not None and flags.images_per_second <= 0:
        raise UserError(f"--images_per_second={flags.images_per_second} must be positive")
    config = dataclasses.replace(config, data=data)
    stage = config.stages[name]
    # What is looked at is cut to squares; with buckets, what is timed is not.
    source = load_source(data, "train", stage.resolution)
    bucketed = load_stage_source(config, name, "train")
    found = examine(
        source, most=flags.num_items, num_threads=data.num_threads, progress=ProgressLine("items")
    )
    if not found.good:
        print(summary(found, Rates(loader=0.0, cores=_cores())))
        raise UserError("none of the items can be used")
    # Grain's workers read absl's flags.
    absl_flags.FLAGS.mark_as_parsed()
    if isinstance(bucketed, BucketedSource):
        print(f"buckets      {bucketed.describe()}")
    stream = batches(
        bucketed,
        batch_size=stage.train.batch_size,
        image_size=stage.resolution,
        seed=config.seed,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
        flip=data.flip,
    )
    loader = loader_rate(stream, flags.seconds)
    stream.close()
    step, devices = flags.images_per_second, flags.num_devices
    if flags.measure_step:
        step, devices = _measure_step(config, name)
    rates = Rates(loader=loader, cores=_cores(), step=step, devices=devices)
    print(summary(found, rates))
    out = Path(flags.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    title = f"{data.path or data.source}, as stage {name} ({stage.resolution} pixels) sees it"
    out.write_text(page(title, found, rates), encoding="utf-8")
    print(f"Look at {out}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure_step(config: CascadeConfig, name: str, seconds: float = 5.0) -> tuple[float, int]:
    """Pictures a second that the train step consumes on all devices here, and their number."""
    import time

    import jax
    import numpy as np

    from imagen_jax.cli.common import setup_jax
    from imagen_jax.models import build_model
    from imagen_jax.parallel.mesh import make_mesh
    from imagen_jax.parallel.placement import BatchRows
    from imagen_jax.text.encoder import load_encoder, text_dim
    from imagen_jax.training import feed
    from imagen_jax.training.loop import compile_step, stage_key
    from imagen_jax.training.optimizer import make_optimizer
    from imagen_jax.training.state import abstract_state, init_state, state_bytes

    setup_jax()
    stage = config.stages[name]
    count = stage.train.batch_size
    size = state_bytes(stage, text_dim(config.text))
    mesh = make_mesh(config.mesh, state_bytes=size)
    setting = f"config.stages.{name}.train.batch_size"
    feed.check_batch_size(count, stage.train.accumulate, mesh, setting)
    encoder = load_encoder(config.text, mesh=mesh)
    model = build_model(
        stage.model,
        resolution=stage.resolution,
        low_res=bool(stage.low_resolution),
        text_dim=encoder.dim,
    )
    optimizer = make_optimizer(stage.train)
    key = stage_key(config, name)
    abstract = abstract_state(model, optimizer, mesh)
    print("compiling the train step", flush=True)
    program = compile_step(config, name, model, optimizer, abstract, encoder, mesh, key)
    state = init_state(model, optimizer, mesh, key)
    side = stage.train.crop_size or stage.resolution
    host = {
        "image": np.zeros((count, side, side, 3), np.uint8),
        "captions": ["a picture"] * count,
        "left_out": {},
    }
    ((batch, _),) = feed.device_batches(iter([host]), encoder, BatchRows(mesh, count))
    steps, start = 0, 0.0
    while True:
        state, metrics = program(state, batch, key)
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        # The first call also warms up.
        if not steps:
            start = now
        elif now - start > seconds:
            return steps * count / (now - start), mesh.size
        steps += 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
