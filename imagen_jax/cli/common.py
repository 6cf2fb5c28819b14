"""What the commands share: the config flag, errors without tracebacks, JAX settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from imagen_jax.config import CascadeConfig, from_config_dict
from imagen_jax.errors import UserError


def define_config_flag() -> None:
    """Defines `--config=FILE` and its overrides `--config.path=value`."""
    config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=False)


def load_config_flag() -> CascadeConfig | None:
    """The validated config of `--config`, None without the flag. Raises UserError."""
    values = flags.FLAGS.config
    try:
        return None if values is None else from_config_dict(values)
    except OSError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"--config cannot be loaded: {reason}") from error


def run_command(main: Callable[[list[str]], None]) -> None:
    """Parses flags and calls `main`; wrong input becomes one message and exit status 2."""

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
            main(argv)
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            sys.exit(130)

    # Orbax tells of every file that it writes.
    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:
        # How config_flags reports an unknown key: a KeyError, which names the nearest one, inside.
        inner = error.args[0] if error.args else error
        text = inner.args[0] if isinstance(inner, KeyError) else str(error)
        _fail(f"unknown config key: {' '.join(text.split())}")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def setup_jax() -> None:
    """Keeps compiled programs between runs, unless the user chose a place for them."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(root, "imagen_jax"))
