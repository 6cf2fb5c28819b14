"""`python -m imagen_jax.cli.plan`: for TPUs that are not there and for local devices."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.planning import topology

ROOT = Path(__file__).parent.parent.parent
TINY = f"--config={ROOT / 'configs' / 'tiny.py'}"


def plan(cache: Path, *flags: str, devices: int = 1) -> subprocess.CompletedProcess:
    environment = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cache),
    }
    return subprocess.run(
        [sys.executable, "-m", "imagen_jax.cli.plan", *flags],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--config is needed"),
        ([TINY], "--stage is needed: one of base, sr16"),
        ([TINY, "--stage=sr64"], "--stage sr64 is not in the config: one of base, sr16"),
        ([TINY, "--stage=base", "--topology=v5e"], "for example v5e:8x8"),
        (
            [TINY, "--stage=base", "--config.text.encoder=/nowhere"],
            "give its width: --text_dim=4096",
        ),
        ([TINY, "--stage=base", "--config.mesh.data=3"], "does not cover 1 device"),
        (
            [TINY, "--stage=base", "--config.stages.base.train.batch_size=7"],
            "does not divide over the 8",
        ),
    ],
)
@pytest.mark.multiprocess
def test_wrong_input_is_one_message(flags, message, tmp_path):
    done = plan(tmp_path, *flags, devices=8 if "batch_size" in str(flags) else 1)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'imagen-jax\[aot\]'"):
        topology.devices_of(topology.parse_topology("v5e:2x2"))


def bytes_of(have: dict, kind: str) -> int:
    return sum(c["bytes"] for c in have["collectives"] if c["kind"] == kind)


KEYS = {
    "stage", "program", "topology", "chips", "mesh", "parameters", "batch_size", "compiler",
    "effort", "compile_seconds", "from_cache", "fits", "memory", "collectives",
    "memory_traffic_bytes", "unknown_loops", "model_flops", "executed_flops", "estimate",
    "images_per_second", "days",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.multiprocess
def test_train_step_and_sampler_for_a_tpu_that_is_not_there(tmp_path):
    flags = (TINY, "--stage=sr16", "--topology=v5e:2x2", "--program=both")
    sharded = ("--config.mesh.data=1", "--config.mesh.fsdp=-1")
    done = plan(tmp_path, *flags, *sharded, "--json")
    assert done.returncode == 0, done.stderr
    train, sample = json.loads(done.stdout)
    for have, program in ((train, "train"), (sample, "sample")):
        assert set(have) == KEYS
        assert (have["program"], have["stage"], have["topology"]) == (program, "sr16", "v5e:2x2")
        assert (have["chips"], have["mesh"]) == (4, {"data": 1, "fsdp": 4, "tensor": 1})
        assert have["fits"] is True and have["unknown_loops"] == 0
        assert have["from_cache"] is False and have["effort"] == "low"
        assert have["compiler"].startswith("libtpu ")
        assert have["parameters"] == 78_627  # what train.py prints
        memory = have["memory"]
        assert memory["available_bytes"] == 15.75 * 2**30
        parts = ("state", "batch", "padding", "temporary", "code")
        assert sum(memory[f"{part}_bytes"] for part in parts) == memory["needed_bytes"]
        assert min(memory[f"{part}_bytes"] for part in parts) > 0
        # Kernels are gathered; the batch stays where it is.
        kinds = {collective["kind"] for collective in have["collectives"]}
        assert "all-gather" in kinds and not kinds & {"all-to-all", "ragged-all-to-all"}
        assert 0 < have["estimate"]["seconds"] < 1e-2
    assert (train["batch_size"], sample["batch_size"]) == (8, 4)
    # Adam, EMA and parameters in four parts, but for what is too small to be cut.
    assert 78_627 * 4 * 4 / 4 < train["memory"]["state_bytes"] < 78_755 * 4 * 4 / 2
    assert train["days"] > 0 and sample["days"] is None

    # The same again comes from the cache, at once and as text.
    again = plan(tmp_path, *flags, *sharded)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("from the cache") == 2 and "compiling" not in again.stderr
    assert "fits         yes" in again.stdout and "78,627" in again.stdout


@pytest.mark.slow
@pytest.mark.multiprocess
def test_copies_of_the_state_are_joined_by_one_sum_of_the_gradients(tmp_path):
    # The mesh of configs/tiny.py: data over all chips.
    done = plan(tmp_path, TINY, "--stage=sr16", "--topology=v6e:2x2", "--json")
    assert done.returncode == 0, done.stderr
    have = json.loads(done.stdout)
    assert have["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert {collective["kind"] for collective in have["collectives"]} == {"all-reduce"}
    # Every gradient once in a ring of four, beside a handful of other numbers; of biases that are
    # added to each other (of a shortcut and of the convolution beside it) one for both.
    gradients = 78_627 * 4 * 2 * 3 // 4
    assert 0.99 * gradients < bytes_of(have, "all-reduce") < 1.01 * gradients
    # Nothing is computed twice in this stage.
    assert have["executed_flops"] == have["model_flops"] > 0


@pytest.mark.slow
@pytest.mark.multiprocess
def test_local_devices(tmp_path):
    done = plan(
        tmp_path, TINY, "--stage=sr16", "--config.mesh.fsdp=2", "--topology=local", devices=4
    )
    assert done.returncode == 0, done.stderr
    assert "4 x local device (data 2 x fsdp 2 x tensor 1)" in done.stdout
    assert "all-gather" in done.stdout and "all-to-all" not in done.stdout
    assert "the speed of this device is not in the table" in done.stdout
    assert "fits         unknown" in done.stdout
