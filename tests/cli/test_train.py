"""The command line of train.py: wrong input is one message, status 2 and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TINY = f"--config={ROOT / 'configs' / 'tiny.py'}"


def train(*flags: str, devices: int = 1) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--config is needed"),
        (["--config=configs/nothing.py"], "configs/nothing.py does not exist"),
        ([TINY], "--workdir is needed"),
        ([TINY, "--workdir={file}"], "is a file; give a directory"),
        ([TINY, "--workdir={new}", "--stage=bse"], "not one of base, sr16"),
        ([TINY, "--workdir={new}", "--profile_steps=5:2"], "is not FIRST:LAST"),
        ([TINY, "--workdir={new}", "--distributed"], "--distributed found no cluster"),
        (
            [TINY, "--workdir={new}", "--distributed", "--process_id=0"],
            "give either that alone, or --coordinator",
        ),
        (
            [TINY, "--workdir={new}", "--coordinator=a:1"],
            "--coordinator without --num_processes and --process_id",
        ),
        (
            [TINY, "--workdir={new}", "--coordinator=a", "--num_processes=2", "--process_id=0"],
            "--coordinator=a is not HOST:PORT",
        ),
        (
            [TINY, "--workdir={new}", "--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 must be from 0 to 1",
        ),
        ([TINY, "--config.sede=3"], "did you mean config.seed?"),
        (
            [TINY, "--config.stages.base.train.batchsize=3"],
            "did you mean config.stages.base.train.batch_size?",
        ),
        ([TINY, "--config.stages.base.train.batch_size=x"], "batch_size=x"),
        (
            [TINY, "--workdir={new}", "--config.stages.base.sample.threshold.percentile=0.995"],
            "in percent",
        ),
        ([TINY, "--workdir={new}", "--config.mesh.data=3"], "does not cover 1 device"),
        ([TINY, "--workdir={new}", "--config.stages.base.resolution=10"], "must chain"),
        (
            [
                TINY,
                "--workdir={new}",
                "--config.stages.base.resolution=9",
                "--config.stages.sr16.low_resolution=9",
                "--config.stages.sr16.resolution=18",
            ],
            "resolution 9 is not a multiple of the model's total stride 2",
        ),
        ([TINY, "--workdir={new}", "--config.text.encoder=/nowhere"], "text.encoder"),
        (
            [TINY, "--workdir={new}", "--init_from=/nowhere"],
            "the name of weights that ship with the package (emoji, shapes)",
        ),
        (
            [TINY, "--workdir={new}", "--config.data.source=folder", "--config.data.path={empty}"],
            "{empty}",
        ),
        (
            [TINY, "--workdir={new}", "--config.data.source=emoji", "--config.data.path=/no.ttf"],
            "fonts-noto-color-emoji",
        ),
    ],
)
def test_wrong_input_is_one_message(tmp_path, flags, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    places = {name: str(tmp_path / name) for name in ("file", "new", "empty")}
    result = train(*(flag.format(**places) for flag in flags))
    assert result.returncode == 2
    assert message.format(**places) in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_batch_that_does_not_divide_names_one_that_does(tmp_path):
    flags = [TINY, f"--workdir={tmp_path / 'new'}", "--config.stages.base.train.batch_size=9"]
    result = train(*flags, devices=8)
    assert result.returncode == 2
    assert "batch_size=9 does not divide over the 8" in result.stderr
    assert "for example 8" in result.stderr
