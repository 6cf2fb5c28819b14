"""The sweep runs, keeps its pictures, and its figures follow the guidance weight."""

import json

import pytest

from imagen_jax.cli import evaluate

pytestmark = pytest.mark.slow


def test_sweep_writes_figures_and_continues(tmp_path, capsys):
    pytest.importorskip("matplotlib")  # CI installs it for the slow tests
    arguments = [f"--out={tmp_path}", "--num_prompts=5", "--sweep_guidance=1,9"]
    arguments += ["--weights=shapes", "--num_true=5"]
    assert evaluate.main(arguments) == 0
    # The base has 16 pixels, too few for the scorer: figures without a score, and no plot.
    assert [path.name for path in tmp_path.glob("*.png")] == ["sweep_sr64.png"]
    assert (tmp_path / "sweep_sr64.png").stat().st_size > 10_000
    sweep = json.loads((tmp_path / "sweep.json").read_text())
    cells = {(c["threshold"], c["guidance_weight"]): c["stages"]["base"] for c in sweep["cells"]}
    assert set(cells) == {(t, w) for t in ("none", "static", "dynamic") for w in (1.0, 9.0)}
    # Without a threshold, guidance drives pixels out of range.
    assert cells["none", 9.0]["clipped pixels"] > cells["none", 1.0]["clipped pixels"]
    assert all(cell["accepted"] is None for cell in cells.values())
    assert all(0 <= c["stages"]["sr64"]["accepted"] <= 1 for c in sweep["cells"])

    pictures = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    pictures.pop(tmp_path / "sweep_sr64.png")
    assert evaluate.main(arguments) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in pictures.items())
    assert json.loads((tmp_path / "sweep.json").read_text()) == sweep


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sweep_guidance=1,two"], "is not a list of numbers"),
        (["--num_prompts=2"], "too few"),
        (["--weights=nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_message(tmp_path, capsys, arguments, message):
    arguments = ["--weights=shapes", "--sweep_guidance=1,9", f"--out={tmp_path}", *arguments]
    assert evaluate.main(arguments) == 2
    assert message in capsys.readouterr().err
