"""How much of its captions a base stage uses, at each noise level.

    python -m benchmarks.caption_use runs/a imagen_jax/weights/shapes [--num_images=256]

Mean squared error of x_hat in held-out scenes of one object of `shapes`: on the background where
the caption names it, and on the object; beside each, the same with the caption of another scene,
and on the object with another shape in the caption. Where they are equal the text is not used. A
network that reads its text knows the background in any noise; that shows after minutes of
training, long before pictures obey.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.denoising_error import Denoiser, held_out_scenes, load_denoisers
from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, SHAPES
from imagen_jax.types import normalize_image

LOGSNRS = (-8, -5, -3, -2, -1, 0)
# Pixels this near to the background's colour, in [-1, 1], are background.
NEAR = 0.02


def caption_use(denoiser: Denoiser, num_images: int) -> dict[int, list[float]]:
    """By log-SNR: error on named backgrounds with their and with other captions, then on objects
    with their captions, with other ones, and with another shape in their own."""
    scenes, texts, x = held_out_scenes(num_images, denoiser.resolution, kind="single")
    colours = jnp.asarray([BACKGROUNDS[one.background] for one in scenes], jnp.float32)
    distance = jnp.abs(x - normalize_image(colours)[:, None, None]).max(-1)
    background = np.asarray(distance < NEAR)
    pairs = zip(scenes, texts, strict=True)
    named = np.array([one.background in text for one, text in pairs])
    eps = jax.random.normal(jax.random.key(0), x.shape)
    another = dict(zip(SHAPES, SHAPES[3:] + SHAPES[:3], strict=True))
    shapes = [one.objects[0].shape for one in scenes]
    reshaped = [t.replace(s, another[s]) for t, s in zip(texts, shapes, strict=True)]
    captions = [denoiser.encode(t) for t in (texts, texts[1:] + texts[:1], reshaped)]

    def row(level: float) -> list[float]:
        errors = []
        for text in captions:
            error = np.mean((denoiser.x_hat(x, eps, text, level) - x) ** 2, axis=-1)
            errors.append((_mean(error, background)[named], _mean(error, ~background)))
        (own, own_object), (other, other_object), (_, reshaped_object) = errors
        columns = (own, other, own_object, other_object, reshaped_object)
        return [float(np.mean(column)) for column in columns]

    return {level: row(float(level)) for level in LOGSNRS}


def _mean(error: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`[B]`, the mean of `error` `[B, H, W]` where `mask` is true."""
    return (error * mask).sum((1, 2)) / mask.sum((1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--stage", default="base")
    parser.add_argument("--num_images", type=int, default=256)
    flags = parser.parse_args()
    denoisers = load_denoisers(parser, flags.directories, flags.stage)
    for directory, denoiser in denoisers.items():
        print(directory)
        print(
            "log-SNR".rjust(8),
            "background (other caption)",
            "   object (other caption; other shape)",
        )
        for level, row in caption_use(denoiser, flags.num_images).items():
            own, other, own_object, other_object, reshaped = row
            print(
                f"{level:8d}       {own:.4f} ({other:.4f})          "
                f"{own_object:.4f} ({other_object:.4f}; {reshaped:.4f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
