"""How well runs denoise: mean squared error of x_hat at fixed noise levels.

    python benchmarks/denoising_error.py runs/a runs/b [--stage=base] [--num_images=256]

The loss of two runs cannot be compared when they differ in what the network predicts or in how
the loss is weighted; this can, and after a few thousand pictures already, long before pictures
obey their captions. Scenes of `shapes` that training never draws, with their captions, the same
noise for all; whole pictures in [-1, 1]. Directories are work directories or exported weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.data.builtin.shapes import Scene, caption, render, scene
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
    """The base stage of some weights, to be asked for x_hat.

    Attributes:
      resolution: of its pictures.
      encode: captions to what `x_hat` takes.
      x_hat: `(x [B, H, W, 3], eps, text, level) -> [B, H, W, 3]`, what it makes of x under noise.
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
    """The base stage `name` of each directory; without one, the program ends with a message."""
    try:
        return {directory: load_denoiser(directory, name) for directory in directories}
    except UserError as error:
        parser.error(str(error))


def held_out_scenes(
    num_images: int, resolution: int, kind: str | None = None
) -> tuple[list[Scene], list[str], Array]:
    """Scenes, their captions, and the pictures `[num_images, H, W, 3]` in [-1, 1]."""
    scenes = [scene(SCENE_SEED, index, kind=kind) for index in range(num_images)]
    texts = [caption(one, SCENE_SEED, index).text for index, one in enumerate(scenes)]
    x = normalize_image(jnp.asarray(np.stack([render(one, resolution) for one in scenes])))
    return scenes, texts, x


def errors(denoiser: Denoiser, num_images: int) -> dict[int, float]:
    """Mean squared error of x_hat by log-SNR."""
    _, texts, x = held_out_scenes(num_images, denoiser.resolution)
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
