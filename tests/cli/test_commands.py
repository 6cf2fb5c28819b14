"""What all commands share: `--help`, `--config`, and one line for wrong input."""

import ast
import configparser
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagen_jax.cli import common

ROOT = Path(__file__).parent.parent.parent
COMMANDS = (
    "check_data",
    "convert_t5",
    "encode_text",
    "evaluate",
    "export",
    "plan",
    "prepare_data",
    "sample",
    "train",
)
# Import takes longer than help may, imagen_jax.config included: it imports jax.
HEAVY = {"jax", "flax", "transformers", "numpy", "imagen_jax.config", "imagen_jax.sampling"}


def run(command: str, *arguments: str) -> int:
    return importlib.import_module(f"imagen_jax.cli.{command}").main(arguments)


def has_main(file: Path) -> bool:
    functions = ast.parse(file.read_text()).body
    return any(isinstance(f, ast.FunctionDef) and f.name == "main" for f in functions)


def test_the_list_is_that_of_the_files_and_of_the_console_scripts():
    files = (ROOT / "imagen_jax" / "cli").glob("*.py")
    assert sorted(file.stem for file in files if has_main(file)) == list(COMMANDS)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")
    assert sorted(filter(None, scripts)) == [
        f"imagen-{name.replace('_', '-')} = imagen_jax.cli.{name}:main" for name in COMMANDS
    ]


@pytest.mark.parametrize("program", [*COMMANDS, "train.py", "sample.py"])
def test_help_is_quick_and_says_how_to_override_the_config(program):
    path = ROOT / program
    command = [str(path)] if path.is_file() else ["-m", f"imagen_jax.cli.{program}"]
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Ten times what it takes on an idle core.
    assert time.monotonic() - start < 3
    assert result.returncode == 0, result.stderr
    for text in ("--config=NAME|FILE", "--config.KEY=VALUE", "shapes", "    python "):
        assert text in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "imagen_jax.cli.common" in imported and not imported & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_flag(command, capsys):
    assert run(command, "--config=nowhere", "--help") == 0
    entries = re.findall(r"^  --(\S+)\n((?:      .*\n?)+)", capsys.readouterr().out, re.M)
    assert len(entries) >= 5 and entries[0][0] == "config=NAME|FILE"
    for name, about in entries:
        assert len(about.split()) > 1, name


WRONG = {
    "unknown flag": (["--confg=tiny"], "unknown flag --confg; did you mean --config?"),
    "unknown flag after a config": (["--config=missing.py", "--xyz"], "unknown flag --xyz"),
    "no flag": (["here"], "unexpected argument 'here'; flags are written --name=value"),
    "no value": (["--config"], "--config has no value; flags are written --name=value"),
    "missing config": (["--config=configs/missing.py"], "configs/missing.py does not exist"),
    "override alone": (["--config.seed=3"], "--config.seed=3 changes a setting of --config"),
    "two configs": (
        ["--config=tiny", "--config=shapes"],
        "config is given twice: tiny and shapes",
    ),
    "unknown key": (
        ["--config=tiny", "--config.stages.base.train.bach_size=8"],
        "unknown config key config.stages.base.train.bach_size; did you mean "
        "config.stages.base.train.batch_size?",
    ),
    "unknown group": (
        ["--config=tiny", "--config.stages.bse.train.batch_size=8"],
        "unknown config key config.stages.bse; did you mean config.stages.base?",
    ),
    "group like no other": (
        ["--config=tiny", "--config.xyz.batch_size=8"],
        "unknown config key config.xyz; config has ",
    ),
    "stage by number": (
        ["--config=tiny", "--config.stages.0.resolution=8"],
        "config.stages.0.resolution is no config key: its parts are names",
    ),
    "not a group": (["--config=tiny", "--config.seed.x=8"], "config.seed is a value, not a group"),
    "wrong type": (
        ["--config=tiny", "--config.stages.base.train.batch_size=x"],
        "--config.stages.base.train.batch_size=x must be an integer",
    ),
    "wrong truth": (["--config=tiny", "--config.data.flip=2"], "must be true or false"),
    "override out of range": (
        ["--config=tiny", "--config.stages.base.train.batch_size=0"],
        "config.stages.base.train.batch_size=0 must be at least 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_input_is_one_line_and_status_2(command, case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[case]
    assert run(command, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err
    assert not list(tmp_path.iterdir())


def test_what_follows_two_dashes_is_no_flag(capsys):
    assert run("train", "--config=tiny", "--", "--workdir=x") == 2
    assert "unexpected argument '--workdir=x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flag", "message"),
    [
        ("check_data", "--num_items=many", "--num_items=many must be a positive integer"),
        ("convert_t5", "--dtype=float8", "--dtype=float8"),
        ("encode_text", "--shard_size=1.5", "--shard_size=1.5 must be a positive integer"),
        ("evaluate", "--num_prompts=x", "--num_prompts=x must be a positive integer"),
        ("export", "--dtype=bfloat16", "--dtype=bfloat16 must be one of float16, float32"),
        ("plan", "--efficiency=2", "must be a number in the range [0.01, 1]"),
        ("prepare_data", "--max_items=", "--max_items= must be a non-negative integer"),
        ("sample", "--num_images=2a", "--num_images=2a must be a positive integer"),
        ("train", "--dry_run=perhaps", "--dry_run=perhaps must be true or false"),
        ("train", "--init_from", "--init_from has no value; flags are written --name=value"),
        ("train", "--flagfile=/nowhere", "--flagfile cannot be read: No such file"),
        ("sample", "--num_images=0", "--num_images=0 must be a positive integer"),
        ("sample", "--batch_size=0", "--batch_size=0 must be a positive integer"),
        ("sample", "--seed=-1", "--seed=-1 must be an integer in the range [0, 4294967295]"),
        ("sample", "--aspect=wide", "--aspect: 'wide' is no aspect ratio"),
        ("sample", "--guidance_weight=nan", "--guidance_weight=nan must be finite"),
        ("sample", "--eta=base=inf", "--eta=inf must be finite"),
        ("sample", "--num_steps=many", "--num_steps: 'many' is not a whole number"),
        ("sample", "--num_steps=base=3,sr64", "'sr64' is not STAGE=VALUE"),
        ("sample", "--num_steps=base=3,base=4", "stage 'base' is given twice"),
        ("evaluate", "--num_true=0", "--num_true=0 must be a positive integer"),
        ("evaluate", "--aug_level=x", "--aug_level: 'x' is not a number"),
        ("plan", "--efficiency=nan", "--efficiency=nan must be finite"),
        ("plan", "--text_dim=0", "--text_dim=0 must be a positive integer"),
        ("check_data", "--seconds=nan", "--seconds=nan must be finite"),
        ("check_data", "--num_devices=0", "--num_devices=0 must be a positive integer"),
        ("convert_t5", "--shard_gb=0", "--shard_gb=0 must be a number >= 1e-06"),
        ("encode_text", "--batch_size=0", "--batch_size=0 must be a positive integer"),
        ("prepare_data", "--shard_size=0", "--shard_size=0 must be a positive integer"),
    ],
)
def test_a_wrong_value_is_found_before_the_config_is_loaded(command, flag, message, capsys):
    assert run(command, "--config=missing.py", flag) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_package_offers_the_cascade_on_demand():
    code = (
        "import sys, imagen_jax\n"
        "assert 'Cascade' in dir(imagen_jax) and 'jax' not in sys.modules\n"
        "from imagen_jax import Cascade\n"
        "import imagen_jax.sampling\n"
        "assert Cascade is imagen_jax.sampling.Cascade\n"
        "try:\n    imagen_jax.nonsense\n"
        "except AttributeError as error:\n    assert 'nonsense' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_libtpu_is_quiet_where_there_is_no_tpu(monkeypatch):
    names = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "TPU_STDERR_LOG_LEVEL")
    environment = {"TPU_STDERR_LOG_LEVEL": "0"}
    monkeypatch.setattr(os, "environ", environment)
    # On a TPU machine its own values must stay.
    common.silence_libtpu()
    assert environment == {"TPU_STDERR_LOG_LEVEL": "0"}
    environment["TPU_SKIP_MDS_QUERY"] = "1"
    common.silence_libtpu()
    assert [environment[name] for name in names] == ["v5litepod-4", "localhost", "0"]
