"""`--config`: where it is found, what a faulty file gives, and what overrides change."""

from pathlib import Path

import pytest
from absl.flags import DEFINE_string

from imagen_jax.cli import common, config_flag
from imagen_jax.config import load_config
from imagen_jax.errors import UserError

ROOT = Path(__file__).parent.parent.parent
FILE = """
from imagen_jax.config import CascadeConfig, StageConfig, to_config_dict


def get_config():
    config = to_config_dict(CascadeConfig(name="mine", stages={"base": StageConfig()}))
"""


def parse(*arguments):
    """The config of a command line; raises what the command would print."""
    found = []

    def command(flags, config):
        found.append((config, config_flag.path(flags), config_flag.is_overridden(flags, "data")))

    assert common.run("", lambda flags: None, command, arguments) == 0
    return found[0]


def test_packaged_configs_are_those_of_the_repository():
    names = [path.stem for path in sorted((ROOT / "configs").glob("*.py"))]
    assert len(names) > 5 and config_flag.packaged_names() == names
    # What a wheel carries: the pattern must reach the files through the package's directory.
    assert "    configs/*.py\n" in (ROOT / "setup.cfg").read_text()
    assert (ROOT / "imagen_jax" / "configs").readlink() == Path("../configs")


@pytest.mark.parametrize("text", ["tiny", "tiny.py", "configs/tiny.py"])
def test_a_packaged_config_is_found_from_anywhere(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, path, _ = parse(f"--config={text}", "--config.seed=7")
    assert (config.name, config.seed, path) == ("tiny", 7, text)


def test_a_file_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text(FILE + "    return config\n")
    assert parse("--config=configs/tiny.py")[0].name == "mine"
    assert parse("--config=tiny")[0].name == "tiny"
    for missing in ("other/tiny.py", "../configs/tiny.py", "tiny.txt", "configs", ""):
        with pytest.raises(
            UserError, match=r"(does not exist|is a directory); .*emoji, folder, .*shapes"
        ):
            config_flag.find(missing)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("    return config.sed\n", "mine.py, line 7: AttributeError: "),
        ("    return {}\n", "get_config() returned dict"),
        ("    pass\n", "get_config() returned NoneType"),
        ("    return config(\n", "mine.py, line 7: SyntaxError: '(' was never closed"),
        ("    raise SystemExit('no')\n", "line 7: SystemExit: no"),
        ("    raise ValueError('a\\nb')\n", "line 7: ValueError: a b"),
        ("    config.sead = 1\n    return config\n", "did you mean config.seed?"),
        ("    config.seed = 'x'\n    return config\n", "mine.py, line 7: TypeError: "),
        ("    config.data.num_threads = 0\n    return config\n", "num_threads=0 must be at least"),
        ("\ndel get_config\n", "defines no get_config()"),
        ("\nimport no_such_module\n", "line 8: ModuleNotFoundError: No module named 'no_such"),
    ],
)
def test_a_faulty_file_is_one_line(rest, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FILE + rest)
    arguments = [f"--config={tmp_path / 'mine.py'}"]
    assert common.run("", lambda flags: None, lambda *_: None, arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"seed": 1, "flip": true}', "config.json is JSON; a config is a Python"),
        ("mine.py", b"[1, 2]", "mine.py is JSON; a config is a Python file"),
        ("mine.yaml", b"seed: [1\n", "(a config is a Python file with a function get_config()"),
        ("mine.py", b"\xff\xfe\x00", "mine.py is a binary file; a config is a Python"),
    ],
)
def test_other_files_are_one_line(name, content, message, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    arguments = [f"--config={tmp_path / name}"]
    assert common.run("", lambda flags: None, lambda *_: None, arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(UserError, match=r"config is a Python file|SyntaxError"):
        load_config(tmp_path / name)


def test_a_setting_that_the_file_leaves_out_can_be_given(tmp_path):
    (tmp_path / "mine.py").write_text(FILE + "    del config.seed\n    return config\n")
    flag = f"--config={tmp_path / 'mine.py'}"
    assert parse(flag)[0].seed == 0
    assert parse(flag, "--config.seed=7")[0].seed == 7


def test_overrides_of_every_kind_and_nothing_stays_for_the_next_call():
    config, _, data = parse(
        "--config",
        "tiny",
        "--config.data.flip",
        "--config.data.caption_fields=a",
        "--config.data.caption_fields=b",
        "--config.data.aspect_buckets=()",
        "--config.stages.base.train.learning_rate",
        "2",
        "--config.text.encoder=/models/t5",
        "--config.seed=1",
        "--config.seed=2",
    )
    assert config.data.flip and config.data.caption_fields == ("a", "b") and data
    assert config.stages["base"].train.learning_rate == 2.0
    assert (config.seed, config.text.encoder) == (2, "/models/t5")
    config, _, data = parse("--config=tiny", "--noconfig.data.flip", "--config.seed=3")
    assert (config.data.flip, config.seed, config.text.encoder) == (False, 3, "embedded")
    assert data
    assert parse("--config=tiny", "--config.seed=3")[2] is False
    assert parse() == (None, None, False)


def test_flags_may_come_from_a_file_and_the_commands_status_is_returned(tmp_path, capsys):
    (tmp_path / "flags").write_text("--config=tiny\n--config.seed=5\n--name=a b\n")

    def define(flags):
        DEFINE_string("name", None, "A name.", flag_values=flags)

    def command(flags, config):
        print(flags.name, config.seed)
        return 3

    assert common.run("", define, command, [f"--flagfile={tmp_path / 'flags'}"]) == 3
    assert capsys.readouterr().out == "a b 5\n"


def test_an_interrupt_is_one_line_and_status_130(capsys):
    def command(flags, config):
        raise KeyboardInterrupt

    assert common.run("", lambda flags: None, command, [], "Stopped.") == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        common.run("", lambda flags: None, lambda *_: 1 // 0, [])
