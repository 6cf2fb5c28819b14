"""Where the error of a base stage lies, and how much of it no network could avoid.

    python -m benchmarks.error_floor imagen_jax/weights/shapes [--num_images=64]

Held-out scenes of one object of `shapes`, at fixed noise levels. The error of x_hat is given on the
outline (pixels within about one of the edge), inside the object and on the background, each summed
over its pixels and divided by all pixels, so that the three add up to the whole. Beside it stands
that of an estimator which knows the program that draws: it is told everything but place, radius and
angle, and averages the pictures of poses that explain the noisy one. The least possible error
is at most that: no estimator is better on average than the true posterior mean, and this one only
approaches it.

What a network errs above it, weighted by d SNR / 2 and summed over pixels, is how far its pictures
are from true ones: the integral bounds the divergence KL(true || drawn) of the stochastic sampler
(Song et al. 2021, Maximum Likelihood Training of Score-Based Diffusion Models, Theorem 1). The last
column has the integrand, in nats per unit of log-SNR; against a floor that is itself too high, it
is too low.
"""

from __future__ import annotations

import argparse
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from benchmarks.denoising_error import held_out_scenes, load_denoisers
from imagen_jax.data.builtin.shapes import Scene, render
from imagen_jax.data.builtin.shapes.scenes import MARGIN, MAX_ANGLE, SIZES, Object
from imagen_jax.diffusion import process

LOGSNRS = (-5, -3, -2, -1, 0, 1, 2)
REGIONS = ("outline", "inside", "background")
PRIOR_POSES = 3000
KEPT_POSES = 100
MOVED_POSES = 300
# Deviations of a move in x, y, radius (widths of the picture) and angle; smaller every round.
FIRST_MOVE = (0.03, 0.03, 0.02, 0.15)
SHRINK = 0.6
ROUNDS = 4


def regions(picture: np.ndarray) -> dict[str, np.ndarray]:
    """`[H, W]` masks of a picture of one object `[H, W, C]`, whose corners are background."""
    item = np.abs(picture - picture[0, 0]).max(-1) > 0.01
    outline = binary_dilation(item) & ~binary_erosion(item, iterations=2)
    return {"outline": outline, "inside": item & ~outline, "background": ~item & ~outline}


def posterior_mean(
    z: np.ndarray, logsnr: float, prior: tuple[np.ndarray, np.ndarray], scene: Scene, seed: int
) -> np.ndarray:
    """Estimates the clean picture `[H, W, C]` from a noisy one, knowing all but the pose.

    Args:
      z: `[H, W, C]`, alpha x + sigma eps.
      logsnr: of z.
      prior: poses `[N, 4]` (x, y, radius, angle) from their distribution, and their pictures
        `[N, H, W, C]` in [-1, 1].
      scene: where everything but the pose of its one object is taken from.
      seed: of the moves.
    """
    rng = np.random.default_rng(seed)
    alpha = math.sqrt(1.0 / (1.0 + math.exp(-logsnr)))
    variance = 1.0 / (1.0 + math.exp(logsnr))

    def likelihoods(pictures: np.ndarray) -> np.ndarray:
        exponent = np.square(z - alpha * pictures).sum((1, 2, 3)) / (-2.0 * variance)
        weights = np.exp(exponent - exponent.max())
        return weights / weights.sum()

    poses, pictures = prior
    weights = likelihoods(pictures)
    move = np.array(FIRST_MOVE)
    for _ in range(ROUNDS):
        chosen = poses[rng.choice(len(poses), KEPT_POSES + MOVED_POSES, p=weights)]
        moved = chosen[KEPT_POSES:] + rng.normal(size=(MOVED_POSES, 4)) * move
        moved = moved[possible(moved, scene.objects[0].size)]
        poses = np.concatenate([chosen[:KEPT_POSES], moved])
        pictures = draw(scene, poses, z.shape[0])
        weights = likelihoods(pictures)
        move = move * SHRINK
    return np.einsum("n,nhwc->hwc", weights, pictures)


def prior_poses(size: str, rng: np.random.Generator) -> np.ndarray:
    """`[PRIOR_POSES, 4]` poses as `shapes` draws them: x, y, radius, angle."""
    radius = rng.uniform(*SIZES[size], PRIOR_POSES)
    reach = radius + MARGIN
    x, y = reach + rng.uniform(size=(2, PRIOR_POSES)) * (1.0 - 2.0 * reach)
    return np.stack([x, y, radius, rng.uniform(-MAX_ANGLE, MAX_ANGLE, PRIOR_POSES)], axis=-1)


def possible(poses: np.ndarray, size: str) -> np.ndarray:
    """`[N]` bool: which poses `shapes` could draw."""
    x, y, radius, angle = poses.T
    low, high = SIZES[size]
    inside = np.minimum.reduce([x, y, 1.0 - x, 1.0 - y]) >= radius + MARGIN
    return inside & (radius >= low) & (radius <= high) & (np.abs(angle) <= MAX_ANGLE)


def draw(scene: Scene, poses: np.ndarray, resolution: int) -> np.ndarray:
    """`[N, H, W, 3]` float32 in [-1, 1]: the scene's object in each pose."""
    item = scene.objects[0]
    pictures = [
        render(dataclasses.replace(scene, objects=(_posed(item, pose),)), resolution)
        for pose in poses
    ]
    return np.stack(pictures).astype(np.float32) / 127.5 - 1.0


def _posed(item: Object, pose: np.ndarray) -> Object:
    x, y, radius, angle = map(float, pose)
    return dataclasses.replace(item, x=x, y=y, radius=radius, angle=angle)


def floor(scenes: list[Scene], x: np.ndarray, eps: np.ndarray) -> dict[int, np.ndarray]:
    """By log-SNR the squared error `[N, H, W]` of `posterior_mean`, mean over channels."""
    errors = {level: [] for level in LOGSNRS}
    for index, scene in enumerate(scenes):
        poses = prior_poses(scene.objects[0].size, np.random.default_rng(index))
        prior = poses, draw(scene, poses, x.shape[1])
        for level in LOGSNRS:
            z = np.asarray(process.diffuse(x[index], eps[index], jnp.float32(level)))
            estimate = posterior_mean(z, float(level), prior, scene, seed=index)
            errors[level].append(np.square(estimate - x[index]).mean(-1))
    return {level: np.stack(value) for level, value in errors.items()}


def excess_nats(error: float, least: float, logsnr: float, size: int) -> float:
    """The divergence that errors above the floor add per unit of log-SNR, in nats.

    Args:
      error: mean squared error of x_hat.
      least: that of the best estimator.
      logsnr: where both were measured.
      size: of how many values the mean is.
    """
    return 0.5 * size * (error - least) * math.exp(logsnr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--stage", default="base")
    parser.add_argument("--num_images", type=int, default=64)
    flags = parser.parse_args()
    denoisers = load_denoisers(parser, flags.directories, flags.stage)
    resolution = next(iter(denoisers.values())).resolution
    for name, denoiser in denoisers.items():
        if denoiser.resolution != resolution:
            parser.error(f"{name} draws {denoiser.resolution} pixels, the first {resolution}")
    scenes, texts, x = held_out_scenes(flags.num_images, resolution, kind="single")
    eps = jax.random.normal(jax.random.key(0), x.shape)
    masks = [regions(np.asarray(picture)) for picture in x]

    least = floor(scenes, np.asarray(x), np.asarray(eps))

    def show(name: str, errors: dict[int, np.ndarray]) -> None:
        columns = ("whole", *REGIONS, "nats above")
        print(name)
        print("log-SNR".rjust(8), *(column.rjust(10) for column in columns))
        for level, error in errors.items():
            parts = [
                np.mean([(e * m[region]).mean() for e, m in zip(error, masks, strict=True)])
                for region in REGIONS
            ]
            nats = excess_nats(error.mean(), least[level].mean(), level, x[0].size)
            numbers = (f"{number:10.4f}" for number in (error.mean(), *parts))
            print(f"{level:8d}", *numbers, f"{nats:10.2f}", flush=True)

    for name, denoiser in denoisers.items():
        text = denoiser.encode(texts)
        x_hats = {lv: denoiser.x_hat(x, eps, text, float(lv)) for lv in LOGSNRS}
        show(name, {lv: np.asarray(jnp.square(h - x).mean(-1)) for lv, h in x_hats.items()})
    show("floor: at most this is unavoidable", least)


if __name__ == "__main__":
    main()
