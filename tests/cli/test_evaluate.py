"""`python -m imagen_jax.cli.evaluate` on a tiny run."""

import json

import pytest

from imagen_jax.cli import evaluate

# One batch size and one kind of program, so that each stage compiles once.
QUICK = ("--num_prompts=5", "--batch_size=5", "--num_steps=1", "--guidance_weight=1.5")


@pytest.mark.slow
def test_a_run_is_evaluated_and_compared_with_itself(workdir, tmp_path, capsys):
    arguments = [f"--workdir={workdir}", *QUICK, f"--out={tmp_path / 'out'}"]
    status = evaluate.main(arguments)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "sr16, from true" in printed.out and "too small to be read" in printed.out
    # 5 prompts and 7 more of each for diversity in both stages, and 5 true ones.
    assert "85 pictures drawn" in printed.out and "0 drawn before" in printed.out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["stages"]["base"]["sampling"]["guidance"]["weight"] == 1.5
    assert report["settings"]["stages"]["sr16"]["sampling"]["num_steps"] == 1
    assert (tmp_path / "out" / "report.html").read_text().count("<img") == 5 * 2
    # Nothing could be scored, so nothing can be compared.
    other = f"--compare={tmp_path / 'out' / 'report.json'}"
    assert evaluate.main([*arguments, other]) == 2
    printed = capsys.readouterr()
    assert "85 drawn before" in printed.out and "no scored stage in common" in printed.err
    assert evaluate.main([*arguments, "--eta=0.5"]) == 2
    message = "stages.base.sampling.sampler.eta: 0.0 in the directory, 0.5 now"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_prompts=4"], "--num_prompts=4 is too few"),
        (["--num_true=0"], "--num_true=0"),
        (["--batch_size=0"], "--batch_size=0"),
        (["--percentile=0.995"], "99.5"),
        (["--stages=base,sr64"], "no stage 'sr64'"),
        (["--aug_level=2"], "must be in [0, 1]"),
        (["--num_steps=sr64=3"], "no stage 'sr64'"),
        (["--compare=missing.json"], "missing.json cannot be read"),
        (["--config=configs/missing.py"], "does not exist"),
        (["--weights=shapes"], "--weights=shapes, not both"),
        (["--text_encoder=nowhere"], "nowhere"),
        (["--config=tiny", "--config.text.encoder=nowhere"], "text.encoder is 'nowhere'"),
        (["--config=tiny", "--config.stages.base.sample.threshold.percentile=0.9"], "99.5"),
        (
            ["--config=tiny", "--config.data.source=folder", "--config.data.path=/nowhere"],
            "config.data.path=/nowhere does not exist",
        ),
        (
            ["--config=tiny", "--config.data.source=folder", "--data_path=/here"],
            "config.data.path=/here does not exist",
        ),
    ],
)
def test_bad_input_is_a_message_and_status_2(workdir, tmp_path, capsys, arguments, message):
    out = f"--out={tmp_path / 'out'}"
    assert evaluate.main([f"--workdir={workdir}", out, *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()


def test_no_weights_and_wrong_keys(tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert evaluate.main([out]) == 2
    assert "python train.py --config=" in capsys.readouterr().err
    assert evaluate.main([out, "--config=configs/tiny.py"]) == 2
    assert "no weights ship under the name 'tiny'" in capsys.readouterr().err
    assert evaluate.main([out, f"--weights={tmp_path}"]) == 2
    assert "no weights in" in capsys.readouterr().err
    path = tmp_path / "wrong.py"
    path.write_text(
        "import runpy\n"
        "def get_config():\n"
        "    config = runpy.run_path('configs/tiny.py')['get_config']()\n"
        "    with config.unlocked():\n"
        "        config.sead = 1\n"
        "    return config\n"
    )
    assert evaluate.main([out, f"--config={path}"]) == 2
    assert "did you mean config.seed?" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert evaluate.main([f"--out={tmp_path / 'file'}"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_super_resolution_alone_is_a_chain(workdir, tmp_path, capsys):
    arguments = [f"--workdir={workdir}", *QUICK, "--stages=sr16", f"--out={tmp_path}"]
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "sr16, from true" in printed and "base stage was not run" in printed
