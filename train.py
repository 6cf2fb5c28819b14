"""Trains the stages of a cascade.

    python train.py --config=configs/shapes.py --workdir=runs/shapes

Every stage is a run of its own in WORKDIR/<stage>/ and continues from its newest checkpoint.
"""

from absl import flags

from imagen_jax.cli import common, train

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(train)

if __name__ == "__main__":
    train.run()
