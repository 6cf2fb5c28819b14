"""Draws held-out prompts with a trained cascade and measures the pictures.

    python -m imagen_jax.cli.evaluate --config=configs/shapes.py
    python -m imagen_jax.cli.evaluate --workdir=runs/shapes --out=outputs/after_1h \\
        --compare=outputs/evaluation/report.json

Interrupted, it goes on when the same command is given again. docs/evaluation.md explains the
report.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_jax.cli.sample import OVERRIDES, find_weights, override
from imagen_jax.config import CascadeConfig, load_config, validate_sample
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.weights.artefact import Artefact


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 2, with the message alone, for a UserError."""
    flags = _parser().parse_args(arguments)
    try:
        _evaluate(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imagen_jax.cli.evaluate",
        description="Draws held-out prompts with a trained cascade and measures the pictures.",
        allow_abbrev=False,
    )
    source = parser.add_argument_group("weights (one of the three)")
    source.add_argument(
        "--config", metavar="FILE", help="a file of configs/: the weights that ship under its name"
    )
    source.add_argument("--workdir", metavar="DIR", help="a run, also while it trains")
    source.add_argument(
        "--weights", metavar="NAME|DIR", help="a name that ships, or exported weights"
    )
    source.add_argument(
        "--text_encoder", metavar="DIR", help="where the text encoder lies, if it was moved"
    )
    source.add_argument("--data_path", metavar="PATH", help="where the data lies, if it was moved")
    what = parser.add_argument_group("what to measure")
    what.add_argument("--num_prompts", type=int, default=1000, help="in all (default 1000)")
    what.add_argument(
        "--num_true",
        type=int,
        default=200,
        help="true pictures that super-resolution enlarges (default 200, of those prompts)",
    )
    what.add_argument(
        "--stages",
        help="stages to run, such as base,sr64 (default: all); sr64 alone enlarges true pictures",
    )
    what.add_argument("--batch_size", type=int, help="pictures at once")
    what.add_argument(
        "--out",
        default="outputs/evaluation",
        metavar="DIR",
        help="new, or to go on with (default outputs/evaluation)",
    )
    what.add_argument(
        "--compare", metavar="FILE", help="the report.json of another evaluation, to compare with"
    )
    how = parser.add_argument_group(
        "settings (default: from the config)",
        "for all stages (--num_steps=50) or by stage (--num_steps=base=50,sr64=20)",
    )
    for name, (_, about) in OVERRIDES.items():
        how.add_argument(f"--{name}", help=about)
    return parser


def _evaluate(flags: argparse.Namespace) -> None:
    # What needs no weights is checked first, before seconds go into imports.
    config = load_config(flags.config) if flags.config else None
    if Path(flags.out).exists() and not Path(flags.out).is_dir():
        raise UserError(f"--out={flags.out} is a file; give a directory")
    from imagen_jax.evaluation.compare import compare, read_report, text_comparison

    other = read_report(flags.compare) if flags.compare else None
    artefact = _find(flags, config)
    settings = {
        name: config.stages[name].sample
        for name in artefact.stages
        if config is not None and name in config.stages
    }
    settings = override(flags, artefact.config, settings)
    for name, sampling in settings.items():
        validate_sample(name, sampling)

    from imagen_jax.cli.common import setup_jax
    from imagen_jax.evaluation.evaluate import PAGE_FILE, Request, evaluate
    from imagen_jax.evaluation.prompts import load_prompts
    from imagen_jax.evaluation.tables import text_report
    from imagen_jax.sampling import Cascade

    data = artefact.config.data
    if flags.data_path is not None:
        data = dataclasses.replace(data, path=flags.data_path)
    prompts = load_prompts(data, flags.num_prompts)
    setup_jax()
    cascade = Cascade.from_artefact(artefact, text_encoder=flags.text_encoder)
    chain = _chain(cascade, flags.stages)
    request = Request(
        sampling={name: settings[name] for name in chain},
        num_true=flags.num_true,
        batch_size=flags.batch_size,
    )
    report = evaluate(cascade, data, prompts, request, Path(flags.out))
    print(f"\n{text_report(report)}\n")
    if other is not None:
        print(f"{text_comparison(compare(other, report))}\n")
    print(f"Look at {Path(flags.out) / PAGE_FILE}")


def _find(flags: argparse.Namespace, config: CascadeConfig | None) -> Artefact:
    if flags.weights is None:
        return find_weights(flags.config, config, flags.workdir)
    if flags.config or flags.workdir:
        raise UserError("--weights stands alone: leave out --config and --workdir")
    from imagen_jax.weights import artefact as artefact_lib

    return artefact_lib.load_shipped(flags.weights) or artefact_lib.load(flags.weights)


def _chain(cascade, stages: str | None) -> list[str]:
    """The stages to run; the first may be a super-resolution stage if it was asked for."""
    if stages is None:
        return cascade.chain(None, has_picture=False)
    names = [name.strip() for name in stages.split(",")]
    first = cascade.artefact.config.stages.get(names[0])
    return cascade.chain(names, has_picture=first is not None and first.low_resolution > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
