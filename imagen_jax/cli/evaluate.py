"""Draws held-out prompts with a trained cascade and measures the pictures.

    python -m imagen_jax.cli.evaluate --config=configs/shapes.py
    python -m imagen_jax.cli.evaluate --workdir=runs/shapes --out=outputs/after_1h \\
        --compare=outputs/evaluation/report.json
    python -m imagen_jax.cli.evaluate --config=configs/shapes.py --num_prompts=60 \\
        --sweep_guidance=1,2,3,5,8,11,15 --out=outputs/guidance_sweep

If it is interrupted, the same command continues it. Sampling settings come from --config, else from
the weights, and are replaced as in sample.py (--num_steps=50, --num_steps=base=50,sr64=20).
docs/evaluation.md explains the report.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import DEFINE_integer, DEFINE_string, FlagValues

from imagen_jax.cli import common, config_flag
from imagen_jax.cli.sampling_flags import (
    check_sampling_flags,
    define_sampling_flags,
    override,
    sampling_flag_values,
)
from imagen_jax.cli.weights_flags import (
    define_text_encoder_flag,
    define_weights_flags,
    find_weights,
    sampling_settings,
    text_encoder,
)
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    interrupted = "Interrupted. The same command continues from here."
    return common.run(__doc__, define_flags, evaluate, arguments, interrupted)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    define_weights_flags(flags)
    define_text_encoder_flag(flags)
    DEFINE_string(
        "data_path", None, "Path of the data, if it was moved since training.", flag_values=flags
    )
    DEFINE_integer("num_prompts", 1000, "Prompts in all.", lower_bound=1, flag_values=flags)
    DEFINE_integer(
        "num_true",
        200,
        "True pictures that super-resolution enlarges; they belong to the first prompts.",
        lower_bound=1,
        flag_values=flags,
    )
    DEFINE_string(
        "stages",
        None,
        "Stages to run, such as base,sr64. Default: all. sr64 alone enlarges true pictures.",
        flag_values=flags,
    )
    DEFINE_integer("batch_size", None, "Pictures drawn at once.", lower_bound=1, flag_values=flags)
    DEFINE_string(
        "out",
        "outputs/evaluation",
        "Directory of the report. An evaluation that was interrupted there continues.",
        flag_values=flags,
    )
    DEFINE_string(
        "compare", None, "The report.json of another evaluation to compare with.", flag_values=flags
    )
    DEFINE_string(
        "sweep_guidance",
        None,
        "Guidance weights, such as 1,3,5: evaluate the first stage with each of them and each kind "
        "of threshold, and plot the figures.",
        flag_values=flags,
    )
    define_sampling_flags(flags)


def evaluate(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Evaluates what the flags ask for and prints the report."""
    # What needs no weights is checked first, before seconds go into imports.
    if Path(flags.out).exists() and not Path(flags.out).is_dir():
        raise UserError(f"--out={flags.out} is a file; give a directory")
    weights = parse_weights(flags.sweep_guidance)
    check_sampling_flags(sampling_flag_values(flags))
    from imagen_jax.evaluation.compare import compare, read_report, text_comparison

    other = read_report(flags.compare) if flags.compare else None
    artefact = find_weights(config_flag.path(flags), config, flags.workdir, flags.weights)
    settings = override(
        sampling_flag_values(flags), artefact.config, sampling_settings(config, artefact)
    )

    from imagen_jax.evaluation import evaluate as evaluation
    from imagen_jax.evaluation.guidance_sweep import sweep
    from imagen_jax.evaluation.prompts import load_prompts
    from imagen_jax.evaluation.tables import text_report
    from imagen_jax.sampling import Cascade

    # Held out is what the training run held out, unless the command line names other data.
    data = (config if config_flag.is_overridden(flags, "data") else artefact.config).data
    if flags.data_path is not None:
        data = dataclasses.replace(data, path=flags.data_path)
    prompts = load_prompts(data, flags.num_prompts)
    common.setup_jax()
    cascade = Cascade.from_artefact(artefact, text_encoder=text_encoder(flags, config))
    chain = _chain(cascade, flags.stages)
    request = evaluation.Request(
        sampling={name: settings[name] for name in chain},
        num_true=flags.num_true,
        batch_size=flags.batch_size,
    )
    out = Path(flags.out)
    if weights is not None:
        sweep(cascade, data, prompts, request, weights, out)
        print(f"\nLook at {out}/")
        return
    report = evaluation.evaluate(cascade, data, prompts, request, out)
    print(f"\n{text_report(report)}\n")
    if other is not None:
        print(f"{text_comparison(compare(other, report))}\n")
    print(f"Look at {out / evaluation.PAGE_FILE}")


def parse_weights(text: str | None) -> list[float] | None:
    """The weights of `--sweep_guidance`, None without it. Raises UserError."""
    if text is None:
        return None
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"--sweep_guidance={text} is not a list of numbers, such as 1,3,5"
        ) from error
    if not all(map(math.isfinite, weights)):
        raise UserError(f"--sweep_guidance={text}: the weights must be finite")
    return weights


def _chain(cascade, stages: str | None) -> list[str]:
    """The stages to run; the first may be a super-resolution stage if it was asked for."""
    if stages is None:
        return cascade.chain(None, has_picture=False)
    names = [name.strip() for name in stages.split(",")]
    first = cascade.artefact.config.stages.get(names[0])
    return cascade.chain(names, has_picture=first is not None and first.low_resolution > 0)


if __name__ == "__main__":
    sys.exit(main())
