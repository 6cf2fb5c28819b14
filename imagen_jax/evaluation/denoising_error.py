"""Mean squared error of x_hat of base stages at fixed noise levels.

    python -m benchmarks.denoising_error runs/a runs/b [--stage=base] [--num_images=256]

The losses of two runs cannot be compared if the runs differ in prediction type or loss weighting.
This error can, and it tells runs apart after a few thousand pictures, long before pictures match
their captions. It is the mean over held-out scenes of `shapes` with their captions, in [-1, 1],
with the same noise for all. Directories are work directories or exported weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.data.builtin.shapes import caption, render, scene
from imagen_jax.diffusion import process
from imagen_jax.errors import UserError
from imagen_jax.models import apply_network, project_text
from imagen_jax.text.encoder import load_encoder
from imagen_jax.types import Array, TextCond, normalize_image
from imagen_jax.weights import artefact

LOGSNRS = (-5, -4, -3, -2, -1, 0, 1, 2, 4)
SCENE_SEED = -1  # training refuses negative seeds


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A base stage as a function to x_hat.

    Attributes:
      resolution: side of its pictures.
      encode: encodes captions for `x_hat`.
      x_hat: `(x [B, H, W, 3], eps, text, logsnr) -> [B, H, W, 3]`: the estimate of x from x with
        noise eps at that log-SNR.
    """

    resolution: int
    encode: Callable[[Sequence[str]], TextCond]
    x_hat: Callable[[Array, Array, TextCond, float], Array]


def load_denoiser(directory: str, name: str) -> Denoiser:
    """Loads one base stage.

    Raises:
      UserError: there are no such weights, or the stage is a super-resolution stage.
    """
    weights = artefact.load(directory)
    if name not in weights.stages:
        raise UserError(f"{directory} has no stage {name!r}, only {', '.join(weights.stages)}")
    stage = weights.config.stages[name]
    if stage.low_resolution:
        raise UserError(f"stage {name!r} is a super-resolution stage; give a base stage")
    encoder = load_encoder(weights.config.text)
    model = stage.model.make_network(low_res=False, text_dim=encoder.dim)
    params = jax.tree.map(jnp.asarray, weights.stages[name].params)

    @jax.jit
    def denoise(params, x, eps, text, level):
        logsnr = jnp.full((x.shape[0],), level)
        z = process.diffuse(x, eps, logsnr)
        prediction = apply_network(model, params, z, logsnr, project_text(model, params, text))
        return process.predict_x(prediction, z, logsnr, stage.diffusion.prediction)

    return Denoiser(
        resolution=stage.resolution,
        encode=encoder.encode_captions,
        x_hat=functools.partial(denoise, params),
    )


def load_denoisers(
    parser: argparse.ArgumentParser, directories: Sequence[str], name: str
) -> dict[str, Denoiser]:
    """The base stage `name` of each directory; ends the program with a message if it is missing."""
    try:
        return {directory: load_denoiser(directory, name) for directory in directories}
    except UserError as error:
        parser.error(str(error))


def held_out_scenes(num_images: int, resolution: int) -> tuple[list[str], Array]:
    """Captions of held-out scenes, and their pictures `[num_images, H, W, 3]` in [-1, 1]."""
    scenes = [scene(SCENE_SEED, index) for index in range(num_images)]
    texts = [caption(one, SCENE_SEED, index).text for index, one in enumerate(scenes)]
    x = normalize_image(jnp.asarray(np.stack([render(one, resolution) for one in scenes])))
    return texts, x


def errors(denoiser: Denoiser, num_images: int) -> dict[int, float]:
    """Mean squared error of x_hat by log-SNR."""
    texts, x = held_out_scenes(num_images, denoiser.resolution)
    eps = jax.random.normal(jax.random.key(0), x.shape)
    text = denoiser.encode(texts)
    return {
        level: float(jnp.mean((denoiser.x_hat(x, eps, text, float(level)) - x) ** 2))
        for level in LOGSNRS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--stage", default="base")
    parser.add_argument("--num_images", type=int, default=256)
    flags = parser.parse_args()
    denoisers = load_denoisers(parser, flags.directories, flags.stage)
    print("log-SNR".ljust(32), *(f"{level:7d}" for level in LOGSNRS))
    for directory, denoiser in denoisers.items():
        row = errors(denoiser, flags.num_images)
        print(directory[-32:].ljust(32), *(f"{value:7.4f}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
