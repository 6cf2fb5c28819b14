"""Starts real processes of train.py on the smallest config, and reads their outputs."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from imagen_jax.config import MeshConfig, load_config
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stage import open_stage
from imagen_jax.text.encoder import text_dim
from imagen_jax.training.checkpoint import Checkpoints
from imagen_jax.training.program import TrainProgram

ROOT = Path(__file__).parent.parent.parent
SMALLEST = Path(__file__).parent / "smallest_config.py"
# train.py that also records the batches of its steps.
RECORDED = Path(__file__).parent / "recorded_train.py"
# Seconds after which a process has failed, even on a busy machine.
TIMEOUT = 900
TIMING = (
    "images_per_second",
    "data_wait_share",
    "goodput",
    "model_flops_per_second_per_device",
    "mfu",
)


def start(
    workdir: Path,
    file_limit: int | None = None,
    open_files: int | None = None,
    cache: Path | None = None,
    devices: int = 1,
    flags: Sequence[str] = (),
    script: Path = ROOT / "train.py",
    config: Path = SMALLEST,
    **train,
) -> subprocess.Popen:
    """Starts train.py.

    Args:
      workdir: of the run.
      file_limit: bytes that no file may exceed.
      open_files: the most files that the process may have open, as `ulimit -n` sets it.
      cache: of compiled programs; by default that of the tests.
      devices: of the process.
      flags: further ones.
      script: what to start.
      config: file with a stage "base".
      train: settings of the stage's TrainConfig.
    """

    def limit_files() -> None:
        if file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if open_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache or jax.config.jax_compilation_cache_dir),
        # With a file limit the shared cache could get truncated programs.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2" if file_limit is None else "1e9",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # For scripts in another directory.
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        str(script),
        f"--config={config}",
        f"--workdir={workdir}",
        *(f"--config.stages.base.train.{name}={value}" for name, value in train.items()),
        *flags,
    ]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=limit_files if file_limit or open_files else None,
    )


def joined(number: int) -> list[list[str]]:
    """The flags of each of `number` processes that work together on this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        [f"--coordinator=localhost:{port}", f"--num_processes={number}", f"--process_id={place}"]
        for place in range(number)
    ]


def start_pair(workdir: Path, *, flags: Sequence[str] = (), **settings) -> list[subprocess.Popen]:
    """Starts two processes of one job, process 0 first; arguments as of `start`."""
    return [start(workdir, flags=[*place, *flags], **settings) for place in joined(2)]


def finish_pair(pair: list[subprocess.Popen]) -> list[str]:
    """Waits for both to end well, and returns what they printed."""
    return [finish(process) for process in pair]


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits for the end, and returns what was printed."""
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, output
    assert "Traceback" not in output, output
    return output


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns once the condition holds; the process must still run then."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill(process: subprocess.Popen) -> str:
    """SIGKILL; returns what was printed before."""
    process.send_signal(signal.SIGKILL)
    return process.communicate()[0]


def records(workdir: Path) -> list[dict]:
    """The whole lines of metrics.jsonl without what depends on the clock."""
    path = workdir / "base" / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMING}
        for line in lines
    ]


def state_of(workdir: Path, step: int):
    """The leaves of the newest checkpoint, which must be of `step`, and its counters."""
    config = load_config(str(SMALLEST))
    stage = open_stage(config, "base", text_dim(config.text))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    checkpoints = Checkpoints(workdir / "base" / "checkpoints", 3)
    assert checkpoints.steps[0] == step
    program = TrainProgram(stage, mesh, config.text.max_length)
    state = checkpoints.restore(step, program.abstract_state)
    return jax.tree.leaves(jax.device_get(state)), checkpoints.info(step).progress


def assert_same_end(expected: Path, actual: Path, step: int) -> None:
    """Both runs have the same state at `step`, counters, log lines and exported weights."""
    (want, want_progress), (have, have_progress) = (state_of(w, step) for w in (expected, actual))
    assert len(want) > 50
    for one, other in zip(want, have, strict=True):
        np.testing.assert_array_equal(one, other)
    assert want_progress == have_progress
    assert records(expected) == records(actual)
    for file in sorted((expected / "base" / "ema").iterdir()):
        # The name of the weights carries their hash.
        assert file.read_bytes() == (actual / "base" / "ema" / file.name).read_bytes()
