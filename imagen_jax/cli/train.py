"""The command line of `train.py`."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import TYPE_CHECKING

from absl import flags
from etils import epath

from imagen_jax.cli.common import define_config_flag, load_config_flag, run_command
from imagen_jax.config import CascadeConfig, flatten
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.training.interrupt import StopSignal

define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; needed unless --dry_run.")
STAGE = flags.DEFINE_string("stage", None, "Train this stage alone (default: all, in order).")
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Start from these weights: a run's directory, an exported cascade, or a shipped name.",
)
PROFILE = flags.DEFINE_string(
    "profile_steps",
    None,
    "FIRST:LAST: trace these steps, counted from 1 at the start of this process, both included; "
    "the trace goes to WORKDIR/STAGE/profile.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of this TPU pod, SLURM, Open MPI or GKE job."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, on plain machines that are to work together."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
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
    if WORKDIR.value is not None:
        check_workdir(WORKDIR.value)

    # Imported here and below, so that --help and wrong flags answer at once.
    from imagen_jax.parallel import distributed
    from imagen_jax.training.interrupt import StopSignal
    from imagen_jax.training.profile import parse_steps

    profile_steps = parse_steps(PROFILE.value)
    distributed.initialize(
        DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    )
    try:
        with StopSignal() as stop, distributed.explain_lost_peer():
            received = train(config, stages, stop, profile_steps)
    except Exception as error:
        end_one_of_several(error)
        raise
    if received is not None:
        if distributed.is_main():
            print(
                f"\nStopped by {received.name}; all steps are saved. The same command continues.",
                file=sys.stderr,
            )
        # A scheduler that sent SIGTERM got what it asked for; after Ctrl-C a shell script should
        # not go on as if the run were done.
        distributed.end_process(0 if received == signal.SIGTERM else 130)


def check_workdir(workdir: str) -> None:
    """Raises UserError unless a run can be written there."""
    try:
        path = epath.Path(workdir)
        is_file = path.exists() and not path.is_dir()
    except ImportError as error:
        raise UserError(
            f"--workdir={workdir} needs a library for that store ({error}): pip install gcsfs "
            "for gs://, s3fs for s3://"
        ) from error
    if is_file:
        raise UserError(f"--workdir={workdir} is a file; give a directory")


def end_one_of_several(error: Exception) -> None:
    """Ends a process that fails while others of its job may not.

    On the way out of Python it would wait for them, and they for it.
    """
    import jax

    from imagen_jax.parallel import distributed

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    # If all fail alike, they leave together.
    distributed.end_process(2 if isinstance(error, UserError) else 1, wait=10)


def train(
    config: CascadeConfig,
    stages: list[str],
    stop: StopSignal,
    profile_steps: tuple[int, int] | None,
) -> signal.Signals | None:
    """Trains `stages` one after the other; returns the signal that ended it early, if any."""
    from imagen_jax.cli.common import setup_jax
    from imagen_jax.parallel.mesh import make_mesh
    from imagen_jax.stage import open_stage
    from imagen_jax.text.embedding_store import open_store
    from imagen_jax.text.encoder import load_encoder, text_dim
    from imagen_jax.training.loop import train_stage
    from imagen_jax.training.state import state_bytes
    from imagen_jax.weights import artefact
    from imagen_jax.weights.shipped import load_shipped

    setup_jax()
    check_same_command(config, stages)
    if config.data.embeddings:
        dim = open_store(config.data.embeddings, config.text).dim
    else:
        dim = text_dim(config.text)
    weights = None
    if INIT_FROM.value is not None:
        weights = load_shipped(INIT_FROM.value) or artefact.load(INIT_FROM.value)
        missing = [name for name in stages if name not in weights.stages]
        if missing:
            raise UserError(
                f"--init_from={INIT_FROM.value} has no weights of stage {', '.join(missing)}; "
                f"it has {', '.join(weights.stages)} (choose one with --stage)"
            )
    mesh = encoder = None
    for name in stages:
        # Each stage has the mesh that its size asks for, and the encoder lies on it.
        stage = open_stage(config, name, dim)
        new = make_mesh(config.mesh, state_bytes=state_bytes(stage))
        if new != mesh:
            mesh = new
            if config.data.embeddings:
                encoder = open_store(config.data.embeddings, config.text, mesh)
            else:
                encoder = load_encoder(config.text, mesh=mesh)
        received = train_stage(
            stage,
            epath.Path(WORKDIR.value or "."),
            encoder,
            mesh,
            stop,
            init_from=weights,
            profile_steps=profile_steps,
            dry_run=DRY_RUN.value,
        )
        if received is not None:
            return received
    return None


def check_same_command(config: CascadeConfig, stages: list[str]) -> None:
    """Raises UserError unless all processes were started with the same flags."""
    from imagen_jax.parallel.agreement import Agreement

    command = flatten(config) | {
        "--stage": stages,
        "--workdir": WORKDIR.value,
        "--init_from": INIT_FROM.value,
        "--dry_run": DRY_RUN.value,
        "--profile_steps": PROFILE.value,
    }
    commands = Agreement().gather(command)
    for process, other in enumerate(commands):
        if differing := [key for key in command if other.get(key) != commands[0].get(key)]:
            raise UserError(
                f"process {process} was started with other settings than process 0: "
                f"{', '.join(differing[:5])}; give all processes the same command"
            )
