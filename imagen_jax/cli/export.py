"""Collects the EMA weights of a run's stages into one small directory to share or ship.

    python -m imagen_jax.cli.export --workdir=runs/shapes --out=imagen_jax/weights/shapes
    python -m imagen_jax.cli.export --workdir=runs/shapes --out=exported \\
        --config=configs/shapes.py --config.stages.base.sample.num_steps=32

`sample.py --weights=OUT` samples from it; a directory `imagen_jax/weights/NAME` is what
`sample.py --config=configs/NAME.py` finds by itself. With --config, its sampling settings become
the defaults of the exported weights.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import DEFINE_enum, DEFINE_string, FlagValues

from imagen_jax.cli import common, config_flag
from imagen_jax.cli.weights_flags import define_weights_flags, find_weights, sampling_settings
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.config import CascadeConfig
    from imagen_jax.weights.artefact import Artefact


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, export, arguments)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    define_weights_flags(flags)
    DEFINE_string("out", None, "Directory for the weights. Needed.", flag_values=flags)
    DEFINE_enum(
        "dtype", "float16", ["float16", "float32"], "Of the exported weights.", flag_values=flags
    )


def export(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Writes the weights and lists the files."""
    if flags.out is None:
        raise UserError("--out is needed: the directory for the weights")
    out = Path(flags.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a directory")
    artefact = find_weights(config_flag.path(flags), config, flags.workdir, flags.weights)
    if config is not None:
        artefact = with_sampling_of(config, artefact)

    from imagen_jax.weights import artefact as artefact_lib

    artefact_lib.save_cascade(out, artefact, dtype=flags.dtype)
    missing = [name for name in artefact.config.stages if name not in artefact.stages]
    if missing:
        print(f"warning: no weights yet of stage {', '.join(missing)}", file=sys.stderr)
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")


def with_sampling_of(config: CascadeConfig, artefact: Artefact) -> Artefact:
    """The weights with the sampling settings of `config`."""
    stages = dict(artefact.config.stages)
    for name, sampling in sampling_settings(config, artefact).items():
        stages[name] = dataclasses.replace(stages[name], sample=sampling)
    return dataclasses.replace(artefact, config=dataclasses.replace(artefact.config, stages=stages))


if __name__ == "__main__":
    sys.exit(main())
