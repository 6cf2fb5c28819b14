"""The learning curve trains both stages at once and scores the last one."""

import json
import os
import subprocess

import pytest

from benchmarks import learning_curve
from imagen_jax.weights.reading import load

# The last stage gets 32 pixels, the fewest that the scorer reads.
OVERRIDES = (
    "--config.stages.base.resolution=16",
    "--config.stages.sr16.resolution=32",
    "--config.stages.sr16.low_resolution=16",
    "--config.stages.base.train.num_steps=2",
    "--config.stages.sr16.train.num_steps=3",
)


def test_cores_are_divided():
    cores = os.sched_getaffinity(0)
    for parts in (1, 2, len(cores) + 1):
        shares = learning_curve.shares_of_cores(parts)
        assert len(shares) == parts and all(shares) and set().union(*shares) == cores
    assert not set.intersection(*learning_curve.shares_of_cores(2)) or len(cores) == 1


@pytest.mark.slow
def test_both_stages_are_trained_and_the_last_is_scored(tmp_path, monkeypatch, capsys):
    arguments = ["--config=configs/tiny.py", "--minutes=5", "--num_prompts=10", "--", *OVERRIDES]
    monkeypatch.setattr("sys.argv", ["learning_curve", f"--out={tmp_path}", *arguments])
    mine = os.sched_getaffinity(0)
    learning_curve.main()
    assert os.sched_getaffinity(0) == mine
    # The runs end long before the five minutes, so there is one copy, the last.
    (point,) = json.loads((tmp_path / "curve.json").read_text())
    assert point["seen"] == {"base": 16, "sr16": 24} and 0.0 < point["minutes"] < 5.0
    assert set(point["accepted"]) > {"one object", "two objects", "count"}
    (copy,) = learning_curve.copies(tmp_path)
    assert set(load(copy).stages) == {"base", "sr16"}
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert "base 16 images  sr16 24 images" in capsys.readouterr().out

    # The same command neither trains nor scores again.
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(subprocess, "run", None)
    learning_curve.main()
    assert json.loads((tmp_path / "curve.json").read_text()) == [point]


def test_a_run_without_weights_is_one_message(tmp_path, monkeypatch):
    arguments = ["--config=configs/tiny.py", "--", "--config.stages.base.model.kind=nothing"]
    monkeypatch.setattr("sys.argv", ["learning_curve", f"--out={tmp_path}", *arguments])
    with pytest.raises(SystemExit, match="has no weights"):
        learning_curve.main()
