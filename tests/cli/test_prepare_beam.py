"""prepare_data on Apache Beam's direct runner: the store of the plain command, whatever happens."""

import dataclasses
import random
import re
import signal
import subprocess
import sys
import time

import layouts
import pytest

from imagen_jax.cli import prepare_data
from imagen_jax.config import DataConfig
from imagen_jax.data import prepare_beam
from imagen_jax.data.prepare_beam import Work
from imagen_jax.errors import UserError
from imagen_jax.stores.writer import StorePlan, begin_store

# The extra is there in the second part of CI.
pytestmark = pytest.mark.slow
TINY = "--config=tiny"


def run(*flags) -> int:
    return prepare_data.main([TINY, *(str(flag) for flag in flags)])


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def write_folder(path):
    path.mkdir()
    for i in range(30):
        (path / f"{i:03}.png").write_bytes(layouts.png(i)[: 60 if i == 5 else None])
        (path / f"{i:03}.txt").write_text(layouts.caption(i))


def nothing(path):
    del path


SOURCES = {
    "webdataset": (layouts.write_flawed_tars, ["--config.data.min_side=0.3", "--image_size=20"]),
    "folder": (write_folder, []),
    "parquet": (lambda path: layouts.write_img2dataset_parquet(path, 30), ["--max_items=21"]),
    "shapes": (nothing, ["--max_items=18", "--image_size=16"]),
}
RUNNERS = {
    "direct": ["--runner=DirectRunner"],
    "bundles done twice": ["--runner=DirectRunner", "--", "--direct_runner_bundle_repeat=1"],
    "threads": [
        "--runner=DirectRunner",
        "--",
        "--direct_num_workers=3",
        "--direct_running_mode=multi_threading",
    ],
    "processes": [
        "--runner=DirectRunner",
        "--",
        "--direct_num_workers=2",
        "--direct_running_mode=multi_processing",
    ],
    # As Flink and Spark are spoken to.
    "job server": ["--runner=PortableRunner", "--", "--environment_type=LOOPBACK"],
}


@pytest.fixture(scope="module")
def job_server():
    from apache_beam.runners.portability.local_job_service import LocalJobServicer

    server = LocalJobServicer()
    yield f"--job_endpoint=localhost:{server.start_grpc_server()}"
    server.stop()


@pytest.fixture
def runner_flags(request, job_server):
    flags = RUNNERS[request.param]
    return [*flags, job_server] if request.param == "job server" else flags


@pytest.mark.parametrize(
    ("source", "runner_flags"),
    [
        *((source, "direct") for source in SOURCES),
        ("webdataset", "bundles done twice"),
        ("shapes", "threads"),
        ("folder", "processes"),
        ("webdataset", "job server"),
    ],
    indirect=["runner_flags"],
)
def test_the_bytes_are_those_of_the_plain_command(
    source, runner_flags, tmp_path, monkeypatch, capsys
):
    write, flags = SOURCES[source]
    write(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    flags = [f"--config.data.source={source}", "--shard_size=7", *flags]
    flags += ["--config.data.path=set"] if source != "shapes" else []
    assert run(*flags, "--out=plain") == 0
    printed = capsys.readouterr().out
    assert run(*flags, "--out=beam", *runner_flags) == 0
    assert contents(tmp_path / "beam") == contents(tmp_path / "plain")
    said = capsys.readouterr().out
    for pattern in ("left out: .*", ".* pictures in .*"):
        assert re.findall(pattern, said) == re.findall(pattern, printed)
    if source == "webdataset":
        assert "left out: 1 bad: no caption" in said
        assert "left out: 1 filtered: picture too small" in said
    # Complete: nothing is made again.
    before = {path: path.stat().st_ino for path in (tmp_path / "beam").iterdir()}
    assert run(*flags, "--out=beam", "--runner=DirectRunner") == 0
    assert before == {path: path.stat().st_ino for path in (tmp_path / "beam").iterdir()}


@pytest.mark.multiprocess
def test_killed_at_random_ends_as_one_that_was_not(tmp_path):
    layouts.write_img2dataset_tars(tmp_path / "tars", 1500, 300)
    flags = ["--config.data.source=webdataset", f"--config.data.path={tmp_path / 'tars'}"]
    flags += ["--shard_size=25"]
    assert run(*flags, f"--out={tmp_path / 'whole'}") == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "imagen_jax.cli.prepare_data", TINY, *flags, f"--out={killed}"]
    draw, kills, made = random.Random(3), 0, {}
    while True:
        process = subprocess.Popen([*command, "--runner=DirectRunner"])
        more = len(made) + draw.randint(5, 20)
        while process.poll() is None:
            entries = list(killed.glob("unfinished/shard-*.json"))
            if len(entries) >= more:
                break
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        # Of what was entered nothing is made again.
        shards = [killed / p.name.removesuffix(".json") for p in entries]
        assert made.items() <= {path: path.stat().st_ino for path in shards}.items()
        made = {path: path.stat().st_ino for path in shards}
    assert process.returncode == 0 and kills >= 2
    assert made.items() <= {path: path.stat().st_ino for path in killed.iterdir()}.items()
    assert contents(killed) == contents(tmp_path / "whole")


@pytest.mark.multiprocess
def test_interrupted_it_says_how_to_go_on(tmp_path):
    layouts.write_img2dataset_tars(tmp_path / "tars", 1500, 300)
    command = [sys.executable, "-m", "imagen_jax.cli.prepare_data", TINY]
    command += ["--config.data.source=webdataset", f"--config.data.path={tmp_path / 'tars'}"]
    command += [f"--out={tmp_path / 'out'}", "--shard_size=25"]
    process = subprocess.Popen([*command, "--runner=DirectRunner"], stderr=subprocess.PIPE)
    while not list((tmp_path / "out").glob("unfinished/shard-*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"The same command continues" in said
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("runner_flags", ["direct", "job server"], indirect=True)
def test_a_shard_that_fails_is_one_message(runner_flags, tmp_path, capsys):
    files = []
    for i in range(60):
        item = dict(layouts.img2dataset_files(i))
        if i >= 40:
            item[f"{i:09d}.png"] = b"no picture"
        files += item.items()
    layouts.write_tar(tmp_path / "tars" / "0.tar", files)
    flags = ["--config.data.source=webdataset", f"--config.data.path={tmp_path / 'tars'}"]
    flags += ["--shard_size=20"]
    beam = [*flags, f"--out={tmp_path / 'beam'}"]
    assert run(*beam, *runner_flags) == 2
    said = capsys.readouterr().err
    _, start, message = said.rpartition("error: shard")
    assert start and message.startswith(" 2 of 3 (items 40 to 60): of the items 40 to 60, ")
    assert "data.max_bad_share=0.1" in message and "20 bad: not a picture" in message
    assert "Traceback" not in message
    assert not (tmp_path / "beam" / "manifest.json").exists()
    made = {p: p.stat().st_ino for p in (tmp_path / "beam").glob("shard-*")}
    assert len(made) == 2
    assert run(*beam, "--config.data.max_bad_share=1", *runner_flags) == 0
    assert made.items() <= {p: p.stat().st_ino for p in (tmp_path / "beam").iterdir()}.items()
    assert "left out: 20 bad: not a picture" in capsys.readouterr().out
    assert run(*flags, f"--out={tmp_path / 'plain'}", "--config.data.max_bad_share=1") == 0
    assert contents(tmp_path / "beam") == contents(tmp_path / "plain")


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("imagen_jax.data.prepare_beam.reader", broken)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        run("--max_items=4", f"--out={tmp_path}", "--runner=DirectRunner")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runner=NoRunner"], "--runner=NoRunner: Unexpected pipeline runner"),
        (["--runner=no.such.Runner"], "--runner=no.such.Runner: No module"),
        (["--runner=DataflowRunner"], "--runner=DataflowRunner: "),
        (["--runner=DirectRunner", "--image_size=0"], "--image_size=0 must be"),
    ],
)
def test_wrong_input_is_one_message(tmp_path, capsys, flags, message):
    out = tmp_path / "new"
    assert run("--max_items=4", f"--out={out}", *flags) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_workers_are_given_absolute_paths(tmp_path, monkeypatch):
    write_folder(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    given = []
    monkeypatch.setattr(prepare_beam, "Work", lambda *args: given.append(Work(*args)) or given[0])
    assert (
        run(
            "--config.data.source=folder",
            "--config.data.path=set",
            "--out=store",
            "--runner=DirectRunner",
        )
        == 0
    )
    assert given[0].config.path == str(tmp_path / "set")
    assert given[0].plan.directory == str(tmp_path / "store")


def test_a_worker_that_sees_another_set_says_so(tmp_path):
    layouts.write_img2dataset_tars(tmp_path, 4)
    plan = StorePlan(str(tmp_path / "store"), 5, 5, {})
    config = DataConfig(source="webdataset", path=str(tmp_path))
    with pytest.raises(UserError, match=r"4 items .* found 5; .*same path"):
        Work(plan, config, 64, 1, 5).open()
    assert len(Work(plan, config, 64, 1, 4).open()) == 4


def test_a_try_that_comes_through_takes_back_what_one_before_said(tmp_path):
    layouts.write_flawed_tars(tmp_path / "tars")
    config = DataConfig(source="webdataset", path=str(tmp_path / "tars"), max_bad_share=0.0)
    plan = StorePlan(str(tmp_path / "store"), 29, 10, {})
    begin_store(plan)

    class Opened:
        def acquire(self, opener):
            return opener()

    work = Work(plan, config, 64, 1, 29)
    with pytest.raises(UserError, match="no caption"):
        prepare_beam._make(0, work, Opened())
    (message,) = prepare_beam._read_failures(plan)
    assert message.startswith("shard 0 of 3 (items 0 to 10): ")
    lenient = dataclasses.replace(work, config=dataclasses.replace(config, max_bad_share=1.0))
    prepare_beam._make(0, lenient, Opened())
    assert prepare_beam._read_failures(plan) == []
