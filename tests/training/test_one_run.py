"""What can happen to a run from outside: a second run, a lost data worker, a lost directory."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from processes import finish, kill, records, start, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def test_a_second_run_in_the_same_directory_is_refused_and_changes_nothing(tmp_path):
    first = start(tmp_path, num_steps=4000, save_every=4000)
    wait_until(lambda: len(records(tmp_path)) > 2, first)
    begun = records(tmp_path)
    output = finish(start(tmp_path, num_steps=8), status=2)
    assert f"is in use by process {first.pid} on" in output
    assert records(tmp_path)[: len(begun)] == begun and first.poll() is None
    kill(first)
    # A killed run locks nobody out.
    assert "base" in finish(start(tmp_path, num_steps=8))


def test_a_killed_data_worker_ends_the_run_with_its_steps_saved(tmp_path):
    flags = ["--config.data.num_workers=2"]
    process = start(tmp_path, flags=flags, num_steps=4000, save_every=4000)
    wait_until(lambda: len(records(tmp_path)) > 2, process)
    # Of all threads: Grain starts the workers from the one that reads first.
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    worker = next(c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    output = finish(process, status=2)
    assert "error: a process that reads the data was killed by signal 9" in output
    [checkpoint] = (tmp_path / "base" / "checkpoints").iterdir()
    assert int(checkpoint.name) >= records(tmp_path)[-1]["step"]
    output = finish(start(tmp_path, flags=flags, num_steps=int(checkpoint.name) + 4))
    assert f"continuing from the checkpoint of step {int(checkpoint.name):,}" in output


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_a_directory_that_is_lost_is_one_message(tmp_path, part):
    process = start(tmp_path / "run", num_steps=4000, save_every=40)
    wait_until(lambda: len(records(tmp_path / "run")) > 12, process)
    shutil.rmtree(tmp_path / "run" / "base" / part, ignore_errors=True)
    (tmp_path / "run" / "base").mkdir(exist_ok=True)
    if part:
        (tmp_path / "run" / "base" / part).write_text("a file in its place")
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        # Orbax makes a directory that is missing.
        assert not part
        kill(process)
        return
    assert process.returncode == 2 and "Traceback" not in output, output
