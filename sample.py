"""Draws pictures from prompts with a trained cascade.

python sample.py --config=configs/shapes.py --prompts="a red circle" --out=out
python sample.py --workdir=runs/shapes --prompts="a red circle" --out=out
"""

import sys

from imagen_jax.cli import sample

if __name__ == "__main__":
    sys.exit(sample.main())
