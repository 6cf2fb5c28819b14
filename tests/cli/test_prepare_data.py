"""prepare_data as a command, on files as other tools write them."""

import json
import random
import signal
import subprocess
import sys
import time

import layouts
import numpy as np
import pytest

from imagen_jax.cli import prepare_data
from imagen_jax.config import DataConfig
from imagen_jax.data.open import load_source

TINY = "--config=tiny"
FOLDER = "--config.data.source=folder"


@pytest.fixture
def tars(tmp_path):
    layouts.write_flawed_tars(tmp_path / "tars")
    return tmp_path / "tars"


def run(*flags) -> int:
    return prepare_data.main([TINY, *(str(flag) for flag in flags)])


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_webdataset(tars, tmp_path, capsys):
    out = tmp_path / "store"
    flags = ["--config.data.source=webdataset", f"--config.data.path={tars}"]
    flags += [f"--out={out}", "--shard_size=8"]
    assert run(*flags, "--config.data.min_side=0.3", "--image_size=20") == 0
    printed = capsys.readouterr().out
    assert "left out: 1 bad: no caption" in printed
    assert "left out: 1 filtered: picture too small" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["meta"]["source"] == "webdataset"
    data = load_source(DataConfig(source="array_record", path=str(out)), "train", 20)
    captions = [data.item(i).caption for i in range(len(data))]
    expected = [i for i in range(30) if i not in (4, 7, 9, 14)]
    assert captions == [layouts.caption(i) for i in expected]
    for i, number in enumerate(expected):
        np.testing.assert_array_equal(data.item(i).image, layouts.pixels(number))
    assert run(f"--verify={out}") == 0
    (out / "shard-00001.array_record").write_bytes(b"x")
    assert run(f"--verify={out}") == 1
    assert "shard-00001.array_record: not what was written" in capsys.readouterr().out


def test_endless_and_drawn_sources(tmp_path, capsys):
    flags = ["--config.data.source=shapes", f"--out={tmp_path / 'store'}", "--image_size=16"]
    assert run(*flags) == 2
    assert "--max_items" in capsys.readouterr().err
    assert run(*flags, "--max_items=12") == 0
    drawn = load_source(DataConfig(), "train", 16)
    stored = load_source(
        DataConfig(source="array_record", path=str(tmp_path / "store")), "train", 16
    )
    assert len(stored) == 12
    for i in range(12):
        np.testing.assert_array_equal(stored.item(i).image, drawn.item(i).image)
        assert stored.item(i).caption == drawn.item(i).caption


def test_too_many_bad_items(tars, tmp_path, capsys):
    flags = ["--config.data.source=webdataset", f"--config.data.path={tars}"]
    flags += [f"--out={tmp_path / 'store'}"]
    assert run(*flags, "--config.data.max_bad_share=0.01") == 2
    assert "1 bad: no caption" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([FOLDER, "--config.data.path={empty}"], "--out is needed"),
        (
            ["--config.data.source=floder", "--config.data.path={empty}", "--out={new}"],
            "webdataset",
        ),
        (
            ["--config.data.source=folder", "--config.data.path={empty}", "--out={new}"],
            "no picture at all",
        ),
        (["--config.data.source=mix", "--out={new}"], "mix"),
        (["--verify={empty}"], "not a record store"),
        (["--out={new}", "--", "--region=x"], "--region=x"),
        (
            ["--out={new}", "--runner=DirectRunner", "--process_count=2"],
            "--process_count",
        ),
    ],
)
def test_wrong_input_is_one_message(tmp_path, capsys, flags, message):
    (tmp_path / "empty").mkdir()
    places = {name: str(tmp_path / name) for name in ("empty", "new")}
    assert run(*(flag.format(**places) for flag in flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_config_is_needed(tmp_path, capsys):
    assert prepare_data.main([f"--out={tmp_path / 'new'}"]) == 2
    assert "--config is needed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_beam_is_an_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    flags = ["--config.data.source=shapes", f"--out={tmp_path / 'new'}", "--max_items=2"]
    assert run(*flags, "--runner=DirectRunner") == 2
    assert "pip install 'imagen-jax[beam]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_at_random_ends_as_one_that_was_not(tmp_path):
    layouts.write_img2dataset_tars(tmp_path / "tars", 3000, 300)

    def start(out):
        command = [sys.executable, "-m", "imagen_jax.cli.prepare_data", TINY]
        command += ["--config.data.source=webdataset", f"--config.data.path={tmp_path / 'tars'}"]
        command += [f"--out={out}", "--shard_size=50"]
        return subprocess.Popen(command)

    assert start(tmp_path / "whole").wait(100) == 0
    draw, kills, done = random.Random(1), 0, 0
    while True:
        process = start(tmp_path / "killed")
        # Of 60 shards; so many that a slow machine gets on, too, and any moment after that.
        more, pause = done + draw.randint(3, 15), draw.uniform(0, 0.05)
        while process.poll() is None:
            done = len(list((tmp_path / "killed").glob("unfinished/shard-*.json")))
            if done >= more:
                time.sleep(pause)
                break
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0 and kills >= 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
