"""Trains the stages of a cascade.

python train.py --config=configs/shapes.py --workdir=runs/shapes
"""

import sys

from imagen_jax.cli import train

if __name__ == "__main__":
    sys.exit(train.main())
