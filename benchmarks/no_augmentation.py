"""`train.py` for a super-resolution stage that never sees noise on its low-resolution picture.

    python -m benchmarks.no_augmentation --config=configs/shapes.py --workdir=runs/sr --stage=sr64
    python -m imagen_jax.cli.evaluate --workdir=runs/sr --stages=sr64 --aug_level=0

The ablation of noise-conditioning augmentation (Imagen section 2.4): the same run with aug_level 0
in every example. The flags are those of `train.py`. The loss on held-out pictures still has
noise on them, since validation draws its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp

from imagen_jax.cli import train
from imagen_jax.config import StageConfig
from imagen_jax.training import step


def without_noise(
    make_draws: Callable[[StageConfig], Callable[..., tuple]], stage: StageConfig
) -> Callable[..., tuple]:
    """`training.step.make_draws`, but with aug_level 0."""
    draw = make_draws(stage)

    def plain(key, shape):
        draws, dropout_key = draw(key, shape)
        return draws.replace(aug_level=jnp.zeros_like(draws.aug_level)), dropout_key

    return plain


if __name__ == "__main__":
    step.make_draws = functools.partial(without_noise, step.make_draws)
    train.run()
