"""Converts any data source to a store of ArrayRecord shards, the fastest to train from.

    python -m imagen_jax.cli.prepare_data --config=CONFIG.py --out=STORE
    python -m imagen_jax.cli.prepare_data --source=webdataset --path=TARS --out=STORE
    python -m imagen_jax.cli.prepare_data --verify=STORE
    python -m imagen_jax.cli.prepare_data --source=... --out=STORE --runner=RUNNER -- --OPTION=...

Interrupted or killed, it goes on when the same command is given again. On several machines, give
each --process_index and --process_count; or name a runner of Apache Beam, and after -- the options
of Beam and of that runner. docs/data.md has recipes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from imagen_jax.config import CascadeConfig, DataConfig, load_config
from imagen_jax.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 2, with the message alone, for a UserError."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = _parser().parse_args(arguments[:end])
    try:
        return _verify(flags.verify) if flags.verify else _prepare(flags, arguments[end + 1 :])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imagen_jax.cli.prepare_data",
        usage="%(prog)s [flags] [-- options of Beam]",
        description="Converts any data source to a store of ArrayRecord shards.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to convert")
    what.add_argument("--config", metavar="FILE", help="the data of a config")
    add_source_flags(what)
    what.add_argument("--max_items", type=int, default=0, help="the first so many (default: all)")
    what.add_argument(
        "--image_size",
        type=int,
        default=64,
        help="side of the pictures of shapes and emoji, and what --min_side refers to (default 64)",
    )
    where = parser.add_argument_group("where to")
    where.add_argument("--out", metavar="DIR", help="the store: new, or to go on with")
    where.add_argument("--shard_size", type=int, default=10_000, help="items (default 10000)")
    how = parser.add_argument_group("how")
    how.add_argument("--num_threads", type=int, default=4, help="that read (default 4)")
    how.add_argument("--process_index", type=int, default=0, help="this process, from 0")
    how.add_argument("--process_count", type=int, default=1, help="of how many (default 1)")
    how.add_argument(
        "--runner",
        help="of Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner ...",
    )
    parser.add_argument("--verify", metavar="DIR", help="compare a store with its checksums")
    return parser


def add_source_flags(group: argparse._ArgumentGroup) -> None:
    """Flags for the settings of `config.data`, each over the config's."""
    for name, about in (
        ("source", "the format"),
        ("path", "where it lies"),
        ("split", "the stored split"),
        ("image_field", "column or extension of the pictures"),
        ("caption_fields", "columns or keys of the captions, with commas"),
        ("score_field", "column or key of --min_score"),
    ):
        group.add_argument(f"--{name}", help=f"{about} (data.{name})")
    for name, kind in (
        ("min_side", float),
        ("max_aspect", float),
        ("min_caption_length", int),
        ("max_caption_length", int),
        ("min_score", float),
        ("max_bad_share", float),
    ):
        group.add_argument(f"--{name}", type=kind, help=f"data.{name}")


def data_of(flags: argparse.Namespace, config: CascadeConfig | None) -> DataConfig:
    """The data of the config with what the flags say instead. Raises UserError."""
    names = {field.name for field in dataclasses.fields(DataConfig)}
    given = {k: v for k, v in vars(flags).items() if k in names and v is not None}
    if config is None and "source" not in given:
        raise UserError("give --config=FILE, or --source and --path")
    if "caption_fields" in given:
        given["caption_fields"] = tuple(filter(None, given["caption_fields"].split(",")))
    return dataclasses.replace(config.data if config else DataConfig(), **given)


def _prepare(flags: argparse.Namespace, options: Sequence[str]) -> int:
    if not flags.out:
        raise UserError("--out is needed: the directory of the store")
    if options and not flags.runner:
        raise UserError(f"options of Beam ({options[0]}) need --runner=...")
    data = data_of(flags, load_config(flags.config) if flags.config else None)
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
        from imagen_jax.data.prepare import prepare
        from imagen_jax.progress import ProgressLine

        manifest = prepare(
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
        return 0
    size = sum(shard.size for shard in manifest.shards)
    print(
        f"{manifest.num_records:,} pictures in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB"
    )
    for note, number in manifest.notes.items():
        print(f"left out: {number:,} {note}")
    print(f"Train with --config.data.source=array_record --config.data.path={flags.out}")
    return 0


def _verify(directory: str) -> int:
    from imagen_jax.stores.manifest import read_manifest
    from imagen_jax.stores.store import verify

    manifest = read_manifest(directory)
    problems = verify(directory)
    for problem in problems:
        print(problem)
    print(f"{len(manifest.shards) - len(problems)} of {len(manifest.shards)} shards are whole")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
