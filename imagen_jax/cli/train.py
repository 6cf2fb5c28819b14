"""The command line of `train.py`."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from absl import flags

from imagen_jax.cli.common import define_config_flag, load_config_flag, run_command
from imagen_jax.config import CascadeConfig
from imagen_jax.errors import UserError
from imagen_jax.training.interrupt import StopSignal

define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; needed unless --dry_run.")
STAGE = flags.DEFINE_string("stage", None, "Train this stage alone (default: all, in order).")
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Start from these weights: a run's directory, an exported cascade, or a shipped name.",
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compile, print what would happen, and stop.")


def run() -> None:
    """Entry point."""
    run_command(main)


def main(argv: list[str]) -> None:
    """Trains the stages that the flags ask for."""
    del argv
    config = load_config_flag()
    if config is None:
        raise UserError("--config is needed: one of configs/*.py, or your own")
    stages = list(config.ordered_stages())
    if STAGE.value is not None:
        if STAGE.value not in stages:
            raise UserError(f"--stage={STAGE.value} is not one of {', '.join(stages)}")
        stages = [STAGE.value]
    if WORKDIR.value is None and not DRY_RUN.value:
        raise UserError("--workdir is needed: the directory that the run is written to")
    if WORKDIR.value is not None and os.path.isfile(WORKDIR.value):
        raise UserError(f"--workdir={WORKDIR.value} is a file; give a directory")

    with StopSignal() as stop:
        received = train(config, stages, stop)
    if received is not None:
        print(
            f"\nStopped by {received.name}; all steps are saved. The same command continues.",
            file=sys.stderr,
        )
        # A scheduler that sent SIGTERM got what it asked for; after Ctrl-C a shell script should
        # not go on as if the run were done.
        leave(0 if received == signal.SIGTERM else 130)


def train(config: CascadeConfig, stages: list[str], stop: StopSignal) -> signal.Signals | None:
    """Trains `stages` one after the other; returns the signal that ended it early, if any."""
    # Imported here, so that --help and wrong flags answer at once.
    from etils import epath

    from imagen_jax.cli.common import setup_jax
    from imagen_jax.parallel.mesh import make_mesh
    from imagen_jax.sampling import artefact
    from imagen_jax.text.embedding_store import open_store
    from imagen_jax.text.encoder import load_encoder
    from imagen_jax.training.loop import train_stage

    setup_jax()
    mesh = make_mesh(config.mesh)
    if config.data.embeddings:
        encoder = open_store(config.data.embeddings, config.text, mesh)
    else:
        encoder = load_encoder(config.text, mesh=mesh)
    weights = None
    if INIT_FROM.value is not None:
        weights = artefact.load_shipped(INIT_FROM.value) or artefact.load(INIT_FROM.value)
        missing = [name for name in stages if name not in weights.stages]
        if missing:
            raise UserError(
                f"--init_from={INIT_FROM.value} has no weights of stage {', '.join(missing)}; "
                f"it has {', '.join(weights.stages)} (choose one with --stage)"
            )
    for name in stages:
        if stop.received is None:
            train_stage(
                config,
                name,
                epath.Path(WORKDIR.value or "."),
                encoder,
                mesh,
                stop,
                init_from=weights,
                dry_run=DRY_RUN.value,
            )
    return stop.received


def leave(status: int) -> NoReturn:
    """Ends the process at once, even if a compiler is at work in a thread.

    An ordinary exit would wait for it, or crash it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
