"""Converts any data source to a store of ArrayRecord shards, the fastest to train from.

    python -m imagen_jax.cli.prepare_data --config=CONFIG.py --out=STORE
    python -m imagen_jax.cli.prepare_data --config=configs/folder.py \\
        --config.data.source=webdataset --config.data.path=TARS --out=STORE
    python -m imagen_jax.cli.prepare_data --verify=STORE
    python -m imagen_jax.cli.prepare_data --config=CONFIG.py --out=STORE --runner=RUNNER \\
        -- --BEAM_OPTION=...

If it is interrupted or killed, the same command continues. On several machines, give each
--process_index and --process_count; or name a runner of Apache Beam, and after -- the options of
Beam and of that runner. docs/data.md has recipes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl.flags import DEFINE_integer, DEFINE_string, FlagValues

from imagen_jax.cli import common, config_flag
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`.

    The status is 1 if --verify finds damage.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    command = functools.partial(prepare_or_verify, options=arguments[end + 1 :])
    interrupted = "Interrupted. The same command continues from here."
    return common.run(__doc__, define_flags, command, arguments[:end], interrupted)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    DEFINE_string(
        "out",
        None,
        "Directory of the store. A conversion that was interrupted there continues.",
        flag_values=flags,
    )
    DEFINE_integer(
        "max_items", 0, "Convert only the first items. 0: all.", lower_bound=0, flag_values=flags
    )
    DEFINE_integer(
        "image_size",
        64,
        "Side of drawn pictures (shapes, emoji, icons), and the resolution for "
        "config.data.min_side.",
        lower_bound=1,
        flag_values=flags,
    )
    DEFINE_integer("shard_size", 10_000, "Items per shard.", lower_bound=1, flag_values=flags)
    DEFINE_integer("num_threads", 4, "Threads that read.", lower_bound=1, flag_values=flags)
    DEFINE_integer(
        "process_index", 0, "Number of this process, from 0.", lower_bound=0, flag_values=flags
    )
    DEFINE_integer("process_count", 1, "Number of processes.", lower_bound=1, flag_values=flags)
    DEFINE_string(
        "runner",
        None,
        "Runner of Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner ...",
        flag_values=flags,
    )
    DEFINE_string(
        "verify",
        None,
        "Compare the store in this directory with its checksums, and stop.",
        flag_values=flags,
    )


def prepare_or_verify(
    flags: FlagValues, config: CascadeConfig | None, options: Sequence[str]
) -> int:
    """Does what the flags ask for; `options` are those of Beam. Returns the exit status."""
    if flags.verify:
        return verify(flags.verify)
    prepare(flags, config, options)
    return 0


def prepare(flags: FlagValues, config: CascadeConfig | None, options: Sequence[str]) -> None:
    """Writes this process's part of the store, or all of it on Beam."""
    if not flags.out:
        raise UserError("--out is needed: the directory of the store")
    if options and not flags.runner:
        raise UserError(f"options of Beam ({options[0]}) need --runner=...")
    data = config_flag.require(config).data
    settings = {
        name: getattr(flags, name)
        for name in ("image_size", "max_items", "shard_size", "num_threads")
    }
    if flags.runner:
        if (flags.process_index, flags.process_count) != (0, 1):
            raise UserError(
                f"--runner={flags.runner} shares the shards out itself; leave --process_index and "
                "--process_count away"
            )
        from imagen_jax.data.prepare_beam import prepare_on_beam

        manifest = prepare_on_beam(
            data, flags.out, runner=flags.runner, options=options, **settings
        )
    else:
        from imagen_jax.data import prepare as conversion
        from imagen_jax.progress import ProgressLine

        manifest = conversion.prepare(
            data,
            flags.out,
            process_index=flags.process_index,
            process_count=flags.process_count,
            progress=ProgressLine("items"),
            **settings,
        )
    if manifest is None:
        print(
            "The pipeline is at work; it ends with the manifest."
            if flags.runner
            else "The shards of this process are done; others are not yet."
        )
        return
    from imagen_jax.data.formats.array_record import HELD_OUT

    size = sum(shard.size for shard in manifest.shards)
    print(
        f"{manifest.num_records:,} pictures in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB"
    )
    for note, number in manifest.notes.items():
        print(f"{number:,} held out" if note == HELD_OUT else f"left out: {number:,} {note}")
    print(f"Train with --config.data.source=array_record --config.data.path={flags.out}")


def verify(directory: str) -> int:
    """Prints which shards of a store are damaged. Returns the exit status: 1 if any is."""
    from imagen_jax.stores import store
    from imagen_jax.stores.manifest import read_manifest

    manifest = read_manifest(directory)
    problems = store.verify(directory)
    for problem in problems:
        print(problem)
    print(f"{len(manifest.shards) - len(problems)} of {len(manifest.shards)} shards are whole")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
