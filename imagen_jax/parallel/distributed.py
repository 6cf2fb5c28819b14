"""Jobs of several processes: joining the job, and ending when another process is lost.

Every process runs the same command. `initialize` comes before any other call of JAX. After it
`jax.devices()` are the devices of the whole job.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax

from imagen_jax.errors import UserError

# A process that sends no heartbeat for this long counts as dead. JAX then ends the others, even if
# they wait for an accelerator (JAX's default is 100). A virtual machine pauses while it moves to
# another host; a shorter limit could end the job then.
HEARTBEAT_SECONDS = 60
# How long processes wait for each other at the start, and at the end, when one of them writes the
# last weights.
START_SECONDS = 300
END_SECONDS = 600

# Messages of the CPU's collectives (gloo), JAX's service and the network for a lost process.
_LOST = re.compile(
    r"gloo|connection (reset|closed|refused)|socket closed|heartbeat|coordination|"
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)",
    re.IGNORECASE,
)


def initialize(
    detect: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to its job; without arguments it does nothing.

    Args:
      detect: let JAX detect the cluster: a TPU pod, SLURM, Open MPI or GKE.
      coordinator: "HOST:PORT" on which process 0 listens.
      num_processes: number of processes of the job.
      process_id: index of this process, from 0.

    Raises:
      UserError: the arguments are incomplete or contradict each other, no cluster was detected, or
        the other processes did not start in time.
    """
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given) and not detect:
        return
    if detect and len(missing) < len(given):
        raise UserError(
            "--distributed detects the cluster by itself; give either that alone, or "
            "--coordinator, --num_processes and --process_id"
        )
    if not detect:
        _check(given, missing)
    # JAX ends a process whose peers are dead with a message and SIGABRT. By default absl would add
    # long Python traces.
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    # Its handler of SIGTERM would replace ours, see training/interrupt.py.
    jax.config.update("jax_enable_preemption_service", False)
    where = "the cluster" if detect else f"--coordinator={coordinator}"
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"--distributed found no cluster ({error}): it detects TPU pods, SLURM (start with "
            "srun), Open MPI (mpirun) and Kubernetes jobs. Elsewhere give --coordinator=HOST:PORT "
            "--num_processes=N --process_id=I; a single process needs none of these flags"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"this process could not join the others at {where}: {reason}. Start all processes "
            f"within {START_SECONDS} seconds of each other, each with its own --process_id, and "
            "make sure that the port is free on the machine of process 0 and not blocked"
        ) from error


def _check(given: dict[str, str | int | None], missing: list[str]) -> None:
    """Raises UserError unless all three flags are given and valid."""
    if missing:
        present = [flag for flag in given if flag not in missing]
        raise UserError(
            f"{' and '.join(present)} without {' and '.join(missing)}: a job of several processes "
            "needs all three (or --distributed alone where the cluster can be detected)"
        )
    coordinator, number, index = given.values()
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, for example 10.0.0.1:8476")
    if number < 1:
        raise UserError(f"--num_processes={number} must be at least 1")
    if not 0 <= index < number:
        raise UserError(
            f"--process_id={index} must be from 0 to {number - 1} (--num_processes={number})"
        )


def is_main() -> bool:
    """Whether this is the process that writes logs, pictures and weights."""
    return jax.process_index() == 0


@contextlib.contextmanager
def explain_lost_peer() -> Iterator[None]:
    """Ends the process with a message if the connection to another process fails inside.

    It does not raise, because closing resources on the way out would wait for the lost process.
    """
    try:
        yield
    except Exception as error:
        # Any type: Orbax, for example, turns a failed barrier into an OSError.
        text = " ".join(str(error).split())
        if jax.process_count() == 1 or isinstance(error, UserError) or not _LOST.search(text):
            raise
        print(
            f"\nerror: process {jax.process_index()} of {jax.process_count()} has lost another "
            f"one, which ended or cannot be reached; see the output of that process. This process "
            f"ends, too. The same command on all of them continues from the newest checkpoint.\n"
            f"  ({type(error).__name__}: {text[:300]})",
            file=sys.stderr,
        )
        end_process(1, wait=0)


def end_process(status: int, wait: float = END_SECONDS) -> NoReturn:
    """Ends the process, even if a thread compiles or other processes are lost.

    An ordinary exit would wait for both, or crash.

    Args:
      status: exit status.
      wait: seconds to wait for other processes that end, too; otherwise they would take this one
        for dead.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and jax.process_count() > 1 and wait:
        thread = threading.Thread(target=_shut_down, daemon=True)
        thread.start()
        thread.join(wait)
    os._exit(status)


def _shut_down() -> None:
    # This process ends whatever the state of the others.
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
