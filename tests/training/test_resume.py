"""A killed run continues bit for bit: real processes, a real SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.config import MeshConfig, TextConfig, load_config
from imagen_jax.models import build_model
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.text.encoder import load_encoder
from imagen_jax.training.checkpoint import Checkpoints
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.state import abstract_state

ROOT = Path(__file__).parent.parent.parent
STEPS, EVERY = 24, 6


def start(workdir: Path, *flags: str) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT / 'configs' / 'tiny.py'}",
        f"--workdir={workdir}",
        "--stage=base",
        f"--config.stages.base.train.num_steps={STEPS}",
        f"--config.stages.base.train.save_every={EVERY}",
        "--config.stages.base.train.log_every=1",
        "--config.stages.base.train.preview_every=1000",
        *flags,
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "base" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return {record["step"]: record["loss"] for record in records}


def final_state(workdir: Path):
    config = load_config(str(ROOT / "configs" / "tiny.py"))
    stage = config.stages["base"]
    encoder = load_encoder(TextConfig(max_length=4))
    model = build_model(
        stage.model, resolution=stage.resolution, low_res=False, text_dim=encoder.dim
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    checkpoints = Checkpoints(workdir / "base" / "checkpoints", 3)
    assert checkpoints.latest_step == STEPS
    state = checkpoints.restore(STEPS, abstract_state(model, make_optimizer(stage.train), mesh))
    info = checkpoints.info(STEPS)
    checkpoints.close()
    return jax.device_get(state), info.examples_seen


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))

    process = start(killed)
    deadline = time.monotonic() + 300
    # The directory gets its final name once the checkpoint is complete.
    while not (killed / "base" / "checkpoints" / str(2 * EVERY)).exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    output = finish(start(killed))
    assert "continuing from the checkpoint of step" in output

    assert losses(whole) == losses(killed)
    (expected, examples), (actual, examples_again) = map(final_state, (whole, killed))
    assert examples == examples_again == 8 * STEPS
    leaves = jax.tree.leaves(expected)
    assert len(leaves) > 100
    for want, have in zip(leaves, jax.tree.leaves(actual), strict=True):
        np.testing.assert_array_equal(have, want)

    # A finished run says so and changes nothing; a changed one is refused and changes nothing.
    assert "already trained" in finish(start(killed))
    changed = start(killed, "--config.stages.base.train.learning_rate=0.5")
    output, _ = changed.communicate(timeout=300)
    assert changed.returncode == 2
    assert "train.learning_rate: 0.001 in the checkpoint, 0.5 now" in output
    assert "Traceback" not in output
    assert losses(killed) == losses(whole)
