"""A killed run continues bit for bit: real processes, real signals, at random moments.

KILLS=50 pytest -m slow tests/training/test_kill.py -k random -s
"""

import os
import random
import time
from pathlib import Path

import pytest
from processes import assert_same_end, finish, kill, records, start, wait_until

KILLS = int(os.environ.get("KILLS", "3"))
# Log lines and checkpoints at different steps, so that windows are open when a run is saved.
EVERY = {"log_every": 4, "save_every": 6, "validate_every": 10}


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    return any((workdir / "base" / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def writing_weights(workdir: Path) -> bool:
    """Whether the EMA is being written at this moment."""
    return any((workdir / "base" / "ema").glob(".*.tmp"))


def logged(workdir: Path) -> int:
    """The last step that was logged."""
    return max((record["step"] for record in records(workdir)), default=0)


def kill_somewhere(workdir: Path, rng: random.Random, steps: int) -> str:
    """Starts or continues the run and kills it once; returns its activity at that moment."""
    begin = logged(workdir)
    process = start(workdir, num_steps=steps, **EVERY)
    moment = rng.choice(("start", "step", "checkpoint", "checkpoint", "weights"))
    if moment == "start":
        # Anywhere from the imports to the first steps.
        time.sleep(rng.uniform(0.0, 8.0))
    else:
        # Each process passes one or two checkpoints, so that many kills fit into a run.
        ahead = begin + rng.randrange(1, 9)
        wait_until(lambda: logged(workdir) >= min(ahead, steps - 8), process)
        if moment == "step":
            time.sleep(rng.uniform(0.0, 0.2))
        else:
            check = saving if moment == "checkpoint" else writing_weights
            deadline = time.monotonic() + 10
            # Writing weights takes a millisecond, so the moment is sometimes missed.
            while not check(workdir) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0)
            if moment == "checkpoint":
                time.sleep(rng.uniform(0.0, 0.05))
    assert process.poll() is None, process.communicate()[0]
    process.kill()
    during = [
        what
        for what, check in (("checkpoint", saving), ("weights", writing_weights))
        if check(workdir)
    ]
    kill(process)
    return "+".join(during) or ("step" if logged(workdir) > begin else "start")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_killed_at_random_moments_ends_as_an_uninterrupted_one(tmp_path):
    rng = random.Random(KILLS)
    # Enough that no process reaches the end: each is killed within 16 steps of its start.
    steps = 24 + 12 * KILLS
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, num_steps=steps, **EVERY))
    moments = []
    while len(moments) < KILLS:
        moments.append(kill_somewhere(killed, rng, steps))
        print(f"kill {len(moments)}: {moments[-1]}, after step {logged(killed)}", flush=True)
    output = finish(start(killed, num_steps=steps, **EVERY))
    assert "continuing from the checkpoint of step" in output
    print({moment: moments.count(moment) for moment in sorted(set(moments))})
    assert any("checkpoint" in moment for moment in moments)
    assert_same_end(whole, killed, steps)
    assert not saving(killed) and not writing_weights(killed)
    assert not (killed / "base" / "damaged").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_finished_run_says_so_and_a_changed_one_is_refused(tmp_path):
    finish(start(tmp_path, num_steps=8))
    lines = records(tmp_path)
    assert "already trained to step 8" in finish(start(tmp_path, num_steps=8))
    output = finish(start(tmp_path, num_steps=12, learning_rate=0.5), status=2)
    assert "train.learning_rate: 0.001 in the checkpoint, 0.5 now" in output
    assert records(tmp_path) == lines

    # Weights that a kill left older than the last checkpoint are exported again.
    [weights] = (tmp_path / "base" / "ema").glob("*.safetensors")
    content = weights.read_bytes()
    config = tmp_path / "base" / "ema" / "config.json"
    config.write_text(config.read_text().replace('"steps": 8', '"steps": 6'))
    weights.write_bytes(b"")
    assert "already trained to step 8" in finish(start(tmp_path, num_steps=8))
    assert weights.read_bytes() == content
