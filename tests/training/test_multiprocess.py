"""Two real processes on gloo are one job: same data, same numbers, one end.

Sums: with two devices a gradient is a sum of two addends, which has one value in whatever order,
so runs on two devices agree bit for bit. On another number of devices the same sum is rounded in
another order.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import (
    ROOT,
    TIMEOUT,
    assert_same_end,
    finish,
    finish_pair,
    joined,
    kill,
    records,
    start,
    start_pair,
    state_of,
    wait_until,
)

from imagen_jax.parallel.distributed import HEARTBEAT_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

STEPS = 24
EVERY = {"log_every": 4, "save_every": 6, "validate_every": 10, "preview_every": 8}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The run of a pair that nothing happens to."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    main, other = finish_pair(start_pair(workdir, num_steps=STEPS, **EVERY))
    assert "2 x cpu" in main and "2 process(es)" in main
    # One speaks for both.
    assert "Stage base" not in other and "step/s" not in other
    assert len(list((workdir / "base" / "tensorboard").iterdir())) == 1
    return workdir


def steps_saved(workdir: Path) -> list[int]:
    """The finished checkpoints: one that is still being written has a longer name."""
    directory = workdir / "base" / "checkpoints"
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def logged(workdir: Path) -> int:
    return max((record["step"] for record in records(workdir)), default=0)


def assert_close_end(expected: Path, actual: Path) -> None:
    """The same items in the same order: losses and weights differ by rounding alone."""
    (want, want_progress), (have, have_progress) = (
        state_of(workdir, STEPS) for workdir in (expected, actual)
    )
    assert have_progress.examples_seen == want_progress.examples_seen
    # Adam moves a weight by up to the rate (1e-3) a step. Where a gradient is near zero its
    # direction is rounding; 24 steps of a fiftieth of that. Another item changes them by 1e-3.
    for one, other in zip(want, have, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=24 * 2e-5)
    # The ends of the parts of a run are validated, too.
    of_step = {record["step"]: record for record in records(actual)}
    for one in records(expected):
        other = of_step[one["step"]]
        assert other.get("images_seen") == one.get("images_seen")
        for name in {"loss", "validation_loss"} & one.keys():
            # f32 sums in another order: 1e-6 relative a step, some growth. One other item, time
            # or noise in the four steps of a line changes it by 1e-2.
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5)


def test_a_pair_does_what_one_process_with_two_devices_does(undisturbed, tmp_path):
    finish(start(tmp_path, devices=2, num_steps=STEPS, **EVERY))
    assert_same_end(tmp_path, undisturbed, STEPS)
    for file in sorted((tmp_path / "base" / "samples").iterdir()):
        assert file.read_bytes() == (undisturbed / "base" / "samples" / file.name).read_bytes()


def test_a_dead_process_ends_the_other_and_the_pair_continues(undisturbed, tmp_path):
    pair = start_pair(tmp_path, num_steps=STEPS, **EVERY)
    # Beyond a checkpoint, which is written while the steps go on.
    wait_until(lambda: logged(tmp_path) >= 8 and steps_saved(tmp_path), pair[0])
    kill(pair[1])
    killed = time.monotonic()
    output, _ = pair[0].communicate(timeout=TIMEOUT)
    # JAX sees it by the heartbeats, or gloo by the connection.
    assert pair[0].returncode not in (0, None)
    assert "another task died" in output or "has lost another one" in output
    assert "most recent call first" not in output
    assert time.monotonic() - killed < HEARTBEAT_SECONDS + 30

    main, _ = finish_pair(start_pair(tmp_path, num_steps=STEPS, **EVERY))
    assert "continuing from the checkpoint of step" in main
    assert_same_end(undisturbed, tmp_path, STEPS)


@pytest.mark.parametrize("receiver", [0, 1])
def test_sigterm_at_one_saves_both(undisturbed, tmp_path, receiver):
    pair = start_pair(tmp_path, num_steps=STEPS, **EVERY | {"save_every": 1000})
    wait_until(lambda: logged(tmp_path) >= 4, pair[0])
    pair[receiver].send_signal(signal.SIGTERM)
    main, other = finish_pair(pair)
    assert "Stopped by SIGTERM" in main and "Stopped by" not in other
    # One checkpoint, of the step where both stopped.
    [saved] = steps_saved(tmp_path)
    assert 4 <= saved < STEPS

    finish_pair(start_pair(tmp_path, num_steps=STEPS, **EVERY))
    assert_same_end(undisturbed, tmp_path, STEPS)


def test_sigterm_at_one_while_compiling_ends_both(tmp_path):
    # An empty cache, so that the compiler has to work for some seconds.
    pair = start_pair(tmp_path / "run", cache=tmp_path / "cache", num_steps=8)
    while "held out" not in (line := pair[0].stdout.readline()):
        assert line, "the process ended"
    pair[1].send_signal(signal.SIGTERM)
    main, _ = finish_pair(pair)
    assert "compiled" not in main and "Stopped by SIGTERM" in main


def test_a_checkpoint_of_a_pair_continues_on_one_and_on_four_devices_and_back(
    undisturbed, tmp_path
):
    half = tmp_path / "half"
    finish_pair(start_pair(half, num_steps=12, **EVERY))
    alone, four = tmp_path / "alone", tmp_path / "four"
    for copy in (alone, four):
        shutil.copytree(half, copy)

    output = finish(start(alone, num_steps=STEPS, **EVERY))
    assert "continuing from the checkpoint of step 12" in output
    assert_close_end(undisturbed, alone)

    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
    output = finish(start(four, devices=4, flags=mesh, num_steps=16, **EVERY))
    assert "data 2 x fsdp 2" in output and "continuing from the checkpoint of step 12" in output
    main, _ = finish_pair(start_pair(four, num_steps=STEPS, **EVERY))
    assert "continuing from the checkpoint of step 16" in main
    assert_close_end(undisturbed, four)


def test_processes_with_other_settings_are_refused(tmp_path):
    first, second = joined(2)
    pair = [
        start(tmp_path, flags=first, num_steps=8),
        start(tmp_path, flags=second, num_steps=9),
    ]
    for process in pair:
        output = finish(process, status=2)
        assert "stages.base.train.num_steps; give all processes the same command" in output


@pytest.mark.parametrize("task", ["rows", "agreement", "damage"])
def test_what_processes_share(task, tmp_path):
    worker = Path(__file__).parent / "pair_worker.py"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "PYTHONPATH": str(ROOT),
    }
    pair = [
        subprocess.Popen(
            [sys.executable, str(worker), f"--task={task}", f"--directory={tmp_path}", *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for flags in joined(2)
    ]
    for output in finish_pair(pair):
        assert f"{task} is right" in output
