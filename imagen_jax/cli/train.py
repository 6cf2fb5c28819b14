"""Trains the stages of a cascade.

    python train.py --config=configs/shapes.py --workdir=runs/shapes
    python train.py --config=configs/shapes.py --workdir=runs/shapes --stage=base \\
        --config.stages.base.train.batch_size=128

Every stage is a run of its own in WORKDIR/STAGE/ and continues from its newest checkpoint.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl.flags import DEFINE_bool, DEFINE_integer, DEFINE_string, FlagValues
from etils import epath

from imagen_jax.cli import common, config_flag
from imagen_jax.cli.weights_flags import load_named
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig
    from imagen_jax.training.interrupt import Stop, StopSignal


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, train_stages, arguments)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    DEFINE_string(
        "workdir", None, "Directory of the run. Needed unless --dry_run.", flag_values=flags
    )
    DEFINE_string(
        "stage", None, "Train this stage alone. Default: all, in order.", flag_values=flags
    )
    DEFINE_string(
        "init_from",
        None,
        "Start from these weights: the directory of a run, exported weights, or the name of "
        "weights that ship with the package.",
        flag_values=flags,
    )
    DEFINE_string(
        "profile_steps",
        None,
        "FIRST:LAST: trace these steps, counted from 1 at the start of this process, both "
        "included. The trace goes to WORKDIR/STAGE/profile.",
        flag_values=flags,
    )
    DEFINE_bool(
        "distributed",
        False,
        "Join the other processes of this TPU pod, SLURM, Open MPI or GKE job.",
        flag_values=flags,
    )
    DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, for several machines without a scheduler.",
        flag_values=flags,
    )
    DEFINE_integer("num_processes", None, "Number of processes.", flag_values=flags)
    DEFINE_integer("process_id", None, "Number of this process, from 0.", flag_values=flags)
    DEFINE_bool("dry_run", False, "Compile, print what would happen, and stop.", flag_values=flags)


def train_stages(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Trains the stages that the flags ask for."""
    config = config_flag.require(config)
    stages = list(config.ordered_stages())
    if flags.stage is not None:
        if flags.stage not in stages:
            raise UserError(f"--stage={flags.stage} is not one of {', '.join(stages)}")
        stages = [flags.stage]
    if flags.workdir is None and not flags.dry_run:
        raise UserError("--workdir is needed: the directory that the run is written to")
    if flags.workdir is not None:
        check_workdir(flags.workdir)

    # Imported here and below, so that --help and wrong flags answer at once.
    from imagen_jax.parallel import distributed
    from imagen_jax.training.interrupt import StopSignal
    from imagen_jax.training.profile import parse_steps
    from imagen_jax.training.wandb_log import check_wandb

    profile_steps = parse_steps(flags.profile_steps)
    check_wandb(config.wandb_project)
    distributed.initialize(
        flags.distributed, flags.coordinator, flags.num_processes, flags.process_id
    )
    try:
        with StopSignal() as stop, distributed.explain_lost_peer():
            stopped = train(flags, config, stages, stop, profile_steps)
    except Exception as error:
        end_one_of_several(error)
        raise
    if stopped is not None:
        if distributed.is_main():
            print(f"\n{stopped.describe()}", file=sys.stderr)
        distributed.end_process(stopped.status)


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
    flags: FlagValues,
    config: CascadeConfig,
    stages: list[str],
    stop: StopSignal,
    profile_steps: tuple[int, int] | None,
) -> Stop | None:
    """Trains `stages` one after the other; the result says which signal ended it early, if any."""
    from imagen_jax.cli.common import setup_jax
    from imagen_jax.parallel.mesh import make_mesh
    from imagen_jax.stage import open_stage
    from imagen_jax.text.embedding_store import open_store
    from imagen_jax.text.encoder import load_encoder, text_dim
    from imagen_jax.training.loop import train_stage
    from imagen_jax.training.state import state_bytes

    setup_jax()
    check_same_command(flags, config, stages)
    if config.data.embeddings:
        dim = open_store(config.data.embeddings, config.text).dim
    else:
        dim = text_dim(config.text)
    weights = None
    if flags.init_from is not None:
        weights = load_named("--init_from", flags.init_from)
        missing = [name for name in stages if name not in weights.stages]
        if missing:
            raise UserError(
                f"--init_from={flags.init_from} has no weights of stage {', '.join(missing)}; "
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
        stopped = train_stage(
            stage,
            epath.Path(flags.workdir or "."),
            encoder,
            mesh,
            stop,
            init_from=weights,
            profile_steps=profile_steps,
            dry_run=flags.dry_run,
        )
        if stopped is not None:
            return stopped
    return None


def check_same_command(flags: FlagValues, config: CascadeConfig, stages: list[str]) -> None:
    """Raises UserError unless all processes were started with the same flags."""
    from imagen_jax.config import flatten
    from imagen_jax.parallel.agreement import Agreement

    command = flatten(config) | {
        "--stage": stages,
        "--workdir": flags.workdir,
        "--init_from": flags.init_from,
        "--dry_run": flags.dry_run,
        "--profile_steps": flags.profile_steps,
    }
    commands = Agreement().gather(command)
    for process, other in enumerate(commands):
        if differing := [key for key in command if other.get(key) != commands[0].get(key)]:
            raise UserError(
                f"process {process} was started with other settings than process 0: "
                f"{', '.join(differing[:5])}; give all processes the same command"
            )


if __name__ == "__main__":
    sys.exit(main())
