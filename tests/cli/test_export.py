"""`python -m imagen_jax.cli.export`."""

import numpy as np

from imagen_jax.cli import export
from imagen_jax.config import load_config
from imagen_jax.weights import artefact as artefact_lib


def test_stages_of_a_run_become_one_directory(tmp_path, capsys):
    config = load_config("configs/tiny.py")
    for i, name in enumerate(config.stages):
        params = {"a": np.full(3, i + 0.1, np.float32)}
        summary = {"steps": 1, "images_seen": 8}
        directory = tmp_path / "run" / name / "ema"
        artefact_lib.save_stage(directory, name, config, params, summary, "enc", "tok")
    out = tmp_path / "out"
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--out={out}"]) == 0
    assert "base.safetensors" in capsys.readouterr().out
    loaded = artefact_lib.load(out)
    for i, name in enumerate(config.stages):
        # float16 keeps 11 bits.
        np.testing.assert_allclose(loaded.stages[name].params["a"], i + 0.1, rtol=2**-11)


def test_nothing_to_export(tmp_path, capsys):
    assert export.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
    assert "no weights in" in capsys.readouterr().err
