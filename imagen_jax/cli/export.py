"""Collects the EMA weights of a run's stages into one small directory to share or ship.

    python -m imagen_jax.cli.export --workdir=runs/shapes --out=imagen_jax/weights/shapes

`sample.py --workdir=OUT` samples from it; a directory `imagen_jax/weights/NAME` is what
`sample.py --config=configs/NAME.py` finds by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 2, with the message alone, for a UserError."""
    parser = argparse.ArgumentParser(prog="python -m imagen_jax.cli.export", allow_abbrev=False)
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="a run, or exported weights"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the weights go")
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32"))
    flags = parser.parse_args(arguments)

    from imagen_jax.weights import artefact as artefact_lib

    try:
        if Path(flags.out).exists() and not Path(flags.out).is_dir():
            raise UserError(f"--out={flags.out} is a file; give a directory")
        artefact = artefact_lib.load(flags.workdir)
        artefact_lib.save_cascade(flags.out, artefact, dtype=flags.dtype)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    missing = [name for name in artefact.config.stages if name not in artefact.stages]
    if missing:
        print(f"warning: no weights yet of stage {', '.join(missing)}", file=sys.stderr)
    for path in sorted(Path(flags.out).iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
