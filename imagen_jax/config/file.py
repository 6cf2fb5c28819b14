"""Reads config files: Python files with a function `get_config()`."""

from __future__ import annotations

import json
import os
import runpy
import traceback
from pathlib import Path

import ml_collections

from imagen_jax.config.cascade import CascadeConfig
from imagen_jax.config.conversion import from_config_dict
from imagen_jax.errors import UserError

_WANTED = "a config is a Python file with a function get_config(), as those in configs/"


def load_config(path: str | os.PathLike[str]) -> CascadeConfig:
    """Runs the `get_config()` of a config file and validates what it returns.

    Raises:
      UserError: see `read_config_file`, and settings that are wrong.
    """
    return from_config_dict(read_config_file(path))


def read_config_file(path: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The result of a config file's `get_config()`.

    Raises:
      UserError: the file is missing, is no Python, or fails; one line, which names the place.
    """
    file = os.fspath(path)
    if not os.path.isfile(file):
        problem = "is a directory" if os.path.isdir(file) else "does not exist"
        raise UserError(f"{file} {problem}; {_WANTED}")
    # Python versions differ in what they say of it.
    if b"\0" in Path(file).read_bytes():
        raise UserError(f"{file} is a binary file; {_WANTED}")
    if _is_json(Path(file)):
        raise UserError(f"{file} is JSON; {_WANTED}")
    try:
        namespace = runpy.run_path(file)
        if "get_config" not in namespace:
            raise UserError(f"{file} defines no get_config(); {_WANTED}")
        config = namespace["get_config"]()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # Messages may have several lines.
        text = error.msg if isinstance(error, SyntaxError) else error
        message = " ".join(f"{type(error).__name__}: {text}".split())
        hint = f" ({_WANTED})" if not file.endswith(".py") else ""
        raise UserError(f"{_place(file, error)}: {message}{hint}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"{file}: get_config() returned {type(config).__name__}; it must return "
            "to_config_dict(CascadeConfig(...))"
        )
    return config


def _place(file: str, error: BaseException) -> str:
    """The file and, if it is known, the line at which it failed."""
    if isinstance(error, SyntaxError) and error.filename == file and error.lineno:
        return f"{file}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines else file


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), (dict, list))
    except (ValueError, OSError, RecursionError):
        return False
