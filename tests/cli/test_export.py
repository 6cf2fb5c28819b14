"""`python -m imagen_jax.cli.export`."""

import numpy as np

from imagen_jax.cli import export
from imagen_jax.config import load_config
from imagen_jax.weights import artefact as artefact_lib
from imagen_jax.weights import shipped
from imagen_jax.weights.reading import load


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
    loaded = load(out)
    for i, name in enumerate(config.stages):
        # float16 keeps 11 bits.
        np.testing.assert_allclose(loaded.stages[name].params["a"], i + 0.1, rtol=2**-11)


def test_a_config_gives_the_sampling_settings_and_must_be_of_that_network(
    workdir, config, tmp_path
):
    flags = [f"--workdir={workdir}", f"--out={tmp_path}", "--config=tiny"]
    assert export.main([*flags, "--config.stages.sr16.sample.num_steps=7"]) == 0
    exported = load(tmp_path).config
    assert exported.stages["sr16"].sample.num_steps == 7
    assert exported.stages["base"] == config.stages["base"]
    assert export.main([*flags, "--config.stages.base.model.channels=(8,16)"]) == 2


def test_weights_that_ship_are_exported_by_their_name(tmp_path):
    for flag in ("--weights=shapes", "--config=shapes"):
        out = tmp_path / flag
        assert export.main([flag, f"--out={out}"]) == 0
        assert (out / "base.safetensors").read_bytes() == (
            shipped._shipped_root() / "shapes" / "base.safetensors"
        ).read_bytes()


def test_nothing_to_export(tmp_path, capsys):
    assert export.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
    assert "no weights in" in capsys.readouterr().err
    assert export.main([f"--workdir={tmp_path}"]) == 2
    assert "--out is needed" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert export.main(["--weights=shapes", f"--out={tmp_path / 'file'}"]) == 2
    assert "is a file; give a directory" in capsys.readouterr().err
    assert export.main(["--weights=shpes", f"--out={tmp_path / 'out'}"]) == 2
    assert "not the name of weights that ship with the package (emoji, shapes)" in (
        capsys.readouterr().err
    )
