"""Shows what a stage would be trained on, and whether it comes fast enough.

    python -m imagen_jax.cli.check_data --config=configs/folder.py --config.data.path=PICTURES
    python -m imagen_jax.cli.check_data --config=CONFIG.py --stage=base --measure_step

Prints what it found and writes a page with samples and histograms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import DEFINE_bool, DEFINE_float, DEFINE_integer, DEFINE_string, FlagValues

from imagen_jax.cli import common, config_flag
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, check, arguments)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    DEFINE_string("stage", None, "The stage to be trained. Default: the first.", flag_values=flags)
    DEFINE_string("out", "outputs/check_data.html", "File for the page.", flag_values=flags)
    DEFINE_integer(
        "num_items", 10_000, "Items to look at, at most.", lower_bound=1, flag_values=flags
    )
    DEFINE_float(
        "seconds", 5.0, "How long the loader is timed.", lower_bound=0.1, flag_values=flags
    )
    DEFINE_float(
        "images_per_second",
        None,
        "What the train step of the stage consumes on all devices, to compare the loader with.",
        flag_values=flags,
    )
    DEFINE_integer(
        "num_devices",
        1,
        "Devices that consume --images_per_second.",
        lower_bound=1,
        flag_values=flags,
    )
    DEFINE_bool(
        "measure_step",
        False,
        "Compile and time the train step on these devices, to compare the loader with.",
        flag_values=flags,
    )


def check(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Looks at the data that the config names, prints a summary and writes the page."""
    config = config_flag.require(config)
    data = config.data
    name = flags.stage or next(iter(config.ordered_stages()))
    if name not in config.stages:
        raise UserError(f"--stage={name} is not one of {', '.join(config.stages)}")
    if flags.images_per_second is not None and flags.images_per_second <= 0:
        raise UserError(f"--images_per_second={flags.images_per_second} must be positive")

    from imagen_jax.data.buckets import BucketedSource, load_stage_source
    from imagen_jax.data.check import examine, loader_rate
    from imagen_jax.data.check_page import Rates, page, summary
    from imagen_jax.data.open import load_source
    from imagen_jax.data.pipeline import batches
    from imagen_jax.progress import ProgressLine

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

    from imagen_jax.parallel.mesh import make_mesh
    from imagen_jax.parallel.placement import BatchRows
    from imagen_jax.stage import open_stage
    from imagen_jax.text.encoder import load_encoder, text_dim
    from imagen_jax.training import feed
    from imagen_jax.training.program import TrainProgram
    from imagen_jax.training.state import state_bytes

    common.setup_jax()
    stage = open_stage(config, name, text_dim(config.text))
    mesh = make_mesh(config.mesh, state_bytes=state_bytes(stage))
    program = TrainProgram(stage, mesh, config.text.max_length)
    encoder = load_encoder(config.text, mesh=mesh)
    print("compiling the train step", flush=True)
    step = program.compile()
    state, key = program.init_state(), program.key
    count, side = stage.config.train.batch_size, stage.config.train_size
    host = {
        "image": np.zeros((count, side, side, 3), np.uint8),
        "captions": ["a picture"] * count,
        "left_out": {},
    }
    ((batch, _),) = feed.device_batches(iter([host]), encoder, BatchRows(mesh, count))
    steps, start = 0, 0.0
    while True:
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        # The first call also warms up.
        if not steps:
            start = now
        elif now - start > seconds:
            return steps * count / (now - start), mesh.size
        steps += 1


if __name__ == "__main__":
    sys.exit(main())
