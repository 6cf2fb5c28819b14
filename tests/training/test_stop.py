"""SIGTERM at any moment ends a run with status 0 without losing a step: real processes."""

import signal
import time

import pytest
from processes import assert_same_end, finish, records, start, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def line_with(process, text: str) -> None:
    """Reads the output up to the line that has `text`."""
    while text not in (line := process.stdout.readline()):
        assert line, "the process ended"


def test_sigterm_while_compiling_ends_at_once(tmp_path):
    # An empty cache, so that the compiler has to work for some seconds.
    process = start(tmp_path / "run", cache=tmp_path / "cache", num_steps=8)
    line_with(process, "held out")
    process.send_signal(signal.SIGTERM)
    # Nothing could be saved, which a scheduler must not take for success.
    output = finish(process, status=128 + signal.SIGTERM)
    assert "compiled" not in output
    assert "Stopped by SIGTERM before the first step of stage base: there is nothing" in output
    assert not (tmp_path / "run" / "base" / "checkpoints").exists()


@pytest.mark.parametrize("during", ["validating", "drawing samples", "compiling"])
def test_sigterm_does_not_wait_for_validation_and_pictures(tmp_path, during):
    # An empty cache, so that the compiler has to work. Each activity takes minutes as a whole.
    slow = {
        "validating": {"validate_every": 6, "validation_images": 20_000},
        "drawing samples": {"preview_every": 6},
        "compiling": {"preview_every": 6},
    }[during]
    process = start(
        tmp_path / "run",
        cache=tmp_path / "cache" if during == "compiling" else None,
        flags=["--config.stages.base.sample.num_steps=20000"],
        num_steps=1000,
        save_every=500,
        **slow,
    )
    seen = ""
    while f"base: {during}" not in seen:
        seen += process.stdout.read(1)
        assert process.poll() is None, seen
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert "Stopped by SIGTERM; all 6 steps of stage base are saved" in output
    # The usual time between SIGTERM and SIGKILL.
    assert time.monotonic() - begin < 30
    assert [path.name for path in (tmp_path / "run/base/checkpoints").iterdir()] == ["6"]


def test_sigterm_while_saving_and_while_training_loses_nothing(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    steps = 60
    finish(start(whole, num_steps=steps))
    checkpoints = stopped / "base" / "checkpoints"

    process = start(stopped, num_steps=steps)
    wait_until(lambda: any(checkpoints.glob("*tmp*")), process)
    process.send_signal(signal.SIGTERM)
    assert "Stopped by SIGTERM" in finish(process)
    saved = max(int(path.name) for path in checkpoints.iterdir())

    process = start(stopped, num_steps=steps)
    wait_until(lambda: any(record["step"] > saved for record in records(stopped)), process)
    process.send_signal(signal.SIGTERM)
    assert "Stopped by SIGTERM" in finish(process)
    # Where it was stopped, not at the last multiple of save_every.
    assert max(int(path.name) for path in checkpoints.iterdir()) > saved

    finish(start(stopped, num_steps=steps))
    assert_same_end(whole, stopped, steps)


def test_a_run_that_diverges_stops_without_a_new_checkpoint(tmp_path):
    # The first update makes the loss overflow for good.
    process = start(
        tmp_path,
        num_steps=40,
        learning_rate="1e30",
        warmup_steps=0,
        save_every=1,
        keep_checkpoints=2,
        max_skipped_steps=7,
    )
    output = finish(process, status=2)
    assert "no step from 2 to 8 had a finite loss and gradient" in output
    assert "warning: step 2 skipped" in output
    lines = records(tmp_path)
    assert [line["step"] for line in lines if line.get("skipped")] == list(range(2, 9))
    assert all("loss" not in line or line["loss"] is not None for line in lines)
    # Later ones would have pushed out the last from before.
    assert [path.name for path in (tmp_path / "base" / "checkpoints").iterdir()] == ["1"]
