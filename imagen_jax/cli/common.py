"""The frame of every command: flags, `--help`, wrong input in one line, exit status."""

from __future__ import annotations

import difflib
import faulthandler
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import flags as absl_flags
from absl import logging
from absl.flags import EnumParser, FlagValues

from imagen_jax.cli import config_flag
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig

_HELP = frozenset({"--help", "-help", "-h", "--helpshort", "--helpfull"})
_PROGRAM = "command"  # absl skips the first argument


def run(
    about: str,
    define_flags: Callable[[FlagValues], None],
    command: Callable[[FlagValues, CascadeConfig | None], int | None],
    arguments: Sequence[str] | None = None,
    interrupted: str = "Interrupted.",
) -> int:
    """Parses the command line and runs a command.

    Args:
      about: what `--help` prints above the flags: the docstring of the command's module.
      define_flags: defines the command's own flags; `--config` is defined here.
      command: called with the values of the flags and the validated config (None without
        `--config`). It may return an exit status.
      arguments: the command line without the program's name (None: that of this process).
      interrupted: printed after Ctrl-C.

    Returns:
      The exit status: that of `command`, else 0; 2 after wrong input, which is printed as one
      line; 130 after Ctrl-C. Other exceptions are defects and keep their traceback.
    """
    flags = FlagValues()
    define_flags(flags)
    if arguments is None:
        arguments = sys.argv[1:]
        logging.use_absl_handler()
        faulthandler.enable()
    if not _HELP.isdisjoint(arguments):
        print(_help(about, flags))
        return 0
    # Orbax logs every file that it writes.
    logging.set_verbosity(logging.WARNING)
    # Grain reads absl's global flags, which this package does not use.
    absl_flags.FLAGS.mark_as_parsed()
    try:
        config = _parse(flags, arguments)
        return command(flags, config) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def setup_jax() -> None:
    """Keeps compiled programs between runs, unless the user chose a place for them.

    Called before JAX looks for devices.
    """
    import jax

    silence_libtpu()
    if not jax.config.jax_compilation_cache_dir:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(root, "imagen_jax"))


def silence_libtpu() -> None:
    """Keeps libtpu from printing errors where it is installed and there is no TPU.

    JAX then tries the TPU, fails and goes on with the other devices.
    """
    # Set by JAX, when it is imported, on machines without TPU chips.
    if os.environ.get("TPU_SKIP_MDS_QUERY") != "1":
        return
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def _parse(flags: FlagValues, arguments: Sequence[str]) -> CascadeConfig | None:
    """Sets the flags and returns the config. Raises UserError."""
    flags.set_gnu_getopt(True)
    try:
        # The command's own flags first: loading a config takes seconds.
        rest = flags([_PROGRAM, *arguments], known_only=True)
        _check_finite(flags)
        _refuse_unknown(flags, rest)
        config_flag.define(flags, rest)
        unparsed = flags(rest)[1:]
    except UserError:
        raise
    except (absl_flags.Error, ValueError) as error:  # ValueError: --noNAME=VALUE
        raise UserError(_explain(flags, error)) from error
    if unparsed:
        raise UserError(f"unexpected argument {unparsed[0]!r}; flags are written --name=value")
    return config_flag.value(flags)


def _refuse_unknown(flags: FlagValues, arguments: Sequence[str]) -> None:
    """Raises UserError for a flag that is neither the command's nor part of `--config`."""
    has_config = any(re.match(r"--?config(=|$)", argument) for argument in arguments)
    for argument in arguments:
        if argument == "--":
            return
        match = re.match(r"--?([A-Za-z_][^=]*)", argument)
        if match is None or match[1] == "config":
            continue
        if not re.match(r"(no)?config\.", match[1]):
            near = difflib.get_close_matches(match[1], [*flags, "config"], n=1)
            hint = f"did you mean --{near[0]}?" if near else "--help lists the flags"
            raise UserError(f"unknown flag --{match[1]}; {hint}")
        if not has_config:
            raise UserError(f"{argument} changes a setting of --config=NAME|FILE: give that too")


def _explain(flags: FlagValues, error: Exception) -> str:
    """An error of the flags' parsers in one line, worded as our own."""
    cause = error.__context__
    if isinstance(cause, UserError):
        return str(cause)
    text = " ".join(str(error).split()).removeprefix("flag ")
    if group := re.match(r"(--[\w.]+)=(.*): Failed to parse .* as a ConfigDict", text):
        return f"{group[1]} is a group of settings; set one of them, such as {group[1]}.KEY=..."
    if missing := re.search(r"Missing value for flag (--[\w.]+)", text):
        return f"{missing[1]} has no value; flags are written --name=value"
    if unknown := re.match(r"Unknown command line flag '(?:no)?(config\.[\w.]+)'", text):
        return f"--no{unknown[1]}: only settings that are true or false take --no"
    if "flagfile" in text:
        return f"--flagfile cannot be read: {text.rpartition('] ')[2]}"
    name = text.removeprefix("--").partition("=")[0]
    if name in flags:
        parser = flags[name].parser
        kind = parser.syntactic_help
        if flags[name].flag_type() == "bool":
            kind = "true or false"
        if isinstance(parser, EnumParser):
            return f"{text.partition(': ')[0]} must be one of {', '.join(parser.enum_values)}"
        if kind.startswith("number"):
            kind = f"a {kind}"
        if kind:
            return f"{text.removesuffix(f': {cause}')} must be {kind}"
    return text


def _check_finite(flags: FlagValues) -> None:
    """Raises UserError for nan and infinities, which absl's bounds let through."""
    for name in flags:
        value = flags[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value} must be finite")


def _help(about: str, flags: FlagValues) -> str:
    """The text of `--help`."""
    names = ", ".join(config_flag.packaged_names())
    entries = [
        ("config=NAME|FILE", f"A config file, or the name of a packaged config: {names}."),
        (
            "config.KEY=VALUE",
            "Replaces a setting of the config, for example "
            "--config.stages.base.train.batch_size=8. May be repeated.",
        ),
    ]
    for name in flags:
        flag = flags[name]
        notes = [flag.parser.syntactic_help] if flag.parser.syntactic_help else []
        if flag.default not in (None, []) and not flag.boolean:
            notes.append(f"default {flag.default}")
        entries.append(
            (
                f"[no]{name}" if flag.boolean else name,
                f"{flag.help} ({', '.join(notes)})" if notes else flag.help,
            )
        )
    indent = {"initial_indent": " " * 6, "subsequent_indent": " " * 6, "width": 88}
    lines = [about.strip(), "", "Flags:"]
    for label, text in entries:
        lines += [f"  --{label}", *textwrap.wrap(text, **indent)]
    return "\n".join(lines)
