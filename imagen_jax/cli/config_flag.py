"""`--config=NAME|FILE`, and `--config.KEY=VALUE` for a setting of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections
from absl import flags as absl_flags
from absl.flags import FlagValues
from ml_collections import config_flags

from imagen_jax.errors import UserError

# imagen_jax.config imports jax, which takes longer than `--help` may.
if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig

PACKAGED = Path(__file__).parent.parent / "configs"


def find(text: str) -> str:
    """The file that `--config=TEXT` names: one that exists, or else a packaged config.

    `shapes`, `shapes.py` and `configs/shapes.py` all name the packaged `shapes.py`.

    Raises:
      UserError: there is neither.
    """
    if Path(text).is_file():
        return text
    match = re.fullmatch(r"(?:configs/)?(\w+)(?:\.py)?", text)
    if match and (PACKAGED / f"{match[1]}.py").is_file():
        return str(PACKAGED / f"{match[1]}.py")
    problem = "is a directory" if text and Path(text).is_dir() else "does not exist"
    raise UserError(
        f"--config={text} {problem}; give a file or the name of a packaged config: "
        f"{', '.join(packaged_names())}"
    )


def packaged_names() -> list[str]:
    """Names of the configs that ship with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.py"))


def define(flags: FlagValues, arguments: Sequence[str]) -> None:
    """Defines `--config` and the overrides that `arguments` contain.

    Args:
      flags: gets the flags.
      arguments: the command line with the program's name, as `flags` will parse it.
    """
    config_flags.DEFINE_config_file(
        "config",
        None,
        flag_values=flags,
        # A setting that the file does not have may still be a valid one; `value` checks.
        lock_config=False,
        accept_new_attributes=True,
        sys_argv=list(arguments),
    )
    flags["config"].parser = _ConfigParser(arguments)


def value(flags: FlagValues) -> CascadeConfig | None:
    """The validated config of the parsed `--config`, None without the flag. Raises UserError."""
    if flags.config is None:
        return None
    from imagen_jax.config import from_config_dict

    return from_config_dict(flags.config, flags["config"].override_values)


def require(config: CascadeConfig | None) -> CascadeConfig:
    """Raises UserError if `--config` was not given."""
    if config is None:
        raise UserError(
            "--config is needed: a file, or the name of a packaged config "
            f"({', '.join(packaged_names())})"
        )
    return config


def path(flags: FlagValues) -> str | None:
    """What the user wrote after `--config=`, None without the flag."""
    return None if flags.config is None else flags["config"].config_filename


def is_overridden(flags: FlagValues, group: str) -> bool:
    """Whether the command line sets `--config.GROUP` or something in it."""
    if flags.config is None:
        return False
    keys = flags["config"].override_values
    return any(key == group or key.startswith(f"{group}.") for key in keys)


class _ConfigParser(absl_flags.ArgumentParser):
    """Loads the config of `--config` and checks the groups of settings that are overridden."""

    def __init__(self, arguments: Sequence[str]):
        self._arguments = arguments
        self._path: str | None = None

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        if self._path is not None:
            raise UserError(f"--config is given twice: {self._path} and {argument}")
        self._path = argument
        config = _load(find(argument))
        for argument in self._arguments:
            if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
                _check_groups(config, match[1])
        return config

    def flag_type(self) -> str:
        return "config"


def _load(file: str) -> ml_collections.ConfigDict:
    """The result of the file's `get_config()`. Raises UserError, which names the line."""
    from imagen_jax.config import read_config_file

    try:
        return read_config_file(file)
    except UserError as error:
        raise UserError(f"--config: {error}") from error


def _check_groups(config: ml_collections.ConfigDict, key: str) -> None:
    """Raises UserError unless all but the last part of a dotted key lead to a group."""
    from imagen_jax.config.conversion import unknown_key

    if not all(part.isidentifier() for part in key.split(".")):
        raise UserError(
            f"config.{key} is no config key: its parts are names, as in "
            "config.stages.base.resolution"
        )
    *groups, _ = key.split(".")
    here, above = config, "config"
    for name in groups:
        if name not in here:
            raise unknown_key(above, name, list(here))
        here, above = here[name], f"{above}.{name}"
        if not isinstance(here, ml_collections.ConfigDict):
            raise UserError(f"unknown config key config.{key}: {above} is a value, not a group")
