"""At which noise level a cascade loses the shape: true pictures, noised, and drawn on from there.

    python -m benchmarks.noise_ladder imagen_jax/weights/shapes [--num_prompts=96]

True small pictures of prompts for one object are given noise of some log-SNR, the base stage goes
on sampling from there as it would have come by, later stages enlarge the result, and the scorer
counts the pictures that obey their prompts. Started at "none" nothing is drawn by the base, so
that row is what the later stages cost; each further row adds the levels between it and the one
above. That a level costs much does not say that mending it gains as much: levels can fail on the
same pictures. The base is sampled with the ancestral sampler; all else is as the weights say.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.denoising_error import load_denoiser
from imagen_jax.diffusion import guidance, process, samplers, schedules, thresholding
from imagen_jax.errors import UserError
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.scorer import scorer_of
from imagen_jax.sampling import Cascade
from imagen_jax.sampling.loop import make_settings, picture_keys
from imagen_jax.types import Array, normalize_image, null_text, to_uint8

LEVELS = (math.inf, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -4.0)
GROUP = "one object"


def draw_from(
    denoise: Callable[[Array, Array], Array],
    x: Array,
    keys: Array,
    logsnrs: Sequence[float],
    gamma: float,
) -> Array:
    """Noises pictures to the first level and samples on (`ancestral_step`) along the others.

    Args:
      denoise: `(z [B, H, W, C], logsnr [B]) -> x_hat`, guided and thresholded.
      x: `[B, H, W, C]` clean pictures in [-1, 1].
      keys: `[B]` typed keys, one per picture.
      logsnrs: rising, with the level at which the last step ends; of one, nothing is drawn.
      gamma: see `ancestral_step`.

    Returns:
      x_hat of the last step, `[B, H, W, C]`; with no step, `x`.
    """
    z = process.diffuse(
        x, samplers.draw_noise(keys, 0, x.shape[1:]), jnp.full(len(x), logsnrs[0], jnp.float32)
    )
    x_hat = x
    for index, (here, there) in enumerate(itertools.pairwise(logsnrs), start=1):
        here, there = (jnp.full(len(x), level, jnp.float32) for level in (here, there))
        x_hat = denoise(z, here)
        noise = samplers.draw_noise(keys, index, x.shape[1:])
        z = samplers.ancestral_step(z, x_hat, here, there, noise, gamma)
    return x_hat


def ladder(directory: str, num_prompts: int, levels: Sequence[float]) -> Iterator[dict[str, float]]:
    """For each level where sampling starts: `logsnr` (the next of the grid), `accepted`, `mse`.

    Raises:
      UserError: no such weights, not of shapes, or their last stage too small for the scorer.
    """
    base = load_denoiser(directory, "base")
    cascade = Cascade.from_directory(directory)
    chain = cascade.chain(None, False)
    config = cascade.artefact.config
    scorer = scorer_of(config.data)
    if scorer is None:
        raise UserError(f"{directory} draws {config.data.source}; only shapes can be scored")
    last = config.stages[chain[-1]].resolution
    if last < scorer.min_resolution:
        raise UserError(
            f"{directory} ends at {last} pixels; the scorer needs {scorer.min_resolution}"
        )
    settings = cascade.settings("base")
    prompts = load_prompts(config.data, len(scorer.groups) * num_prompts)
    rows = [i for i, prompt in enumerate(prompts.prompts) if prompt.group == GROUP]
    asked = [prompts.prompts[i] for i in rows]
    true = np.stack(list(prompts.true_pictures(base.resolution)))[rows]
    x = normalize_image(jnp.asarray(true))
    text = base.encode([prompt.text for prompt in asked])
    nothing = null_text(text)
    seeds = np.array([prompt.seed for prompt in asked], np.uint32)

    def denoise(z: Array, logsnr: Array) -> Array:
        # x_hat of z: z is what z / alpha becomes under noise that is 0.
        alpha, _ = schedules.alpha_sigma(logsnr[0])
        with_text, without = (
            base.x_hat(z / alpha, jnp.zeros_like(z), given, logsnr[0]) for given in (text, nothing)
        )
        x_hat = guidance.guide(with_text, without, settings.guidance_weight)
        return thresholding.threshold(
            x_hat, settings.threshold, settings.percentile, settings.threshold_cap
        )

    schedule = schedules.make_schedule(config.stages["base"].diffusion, base.resolution)
    grid = np.asarray(jax.vmap(schedule)(samplers.time_grid(settings.num_steps)))
    for level in levels:
        start = int(np.argmin(np.abs(grid - level))) if math.isfinite(level) else len(grid) - 1
        drawn = draw_from(denoise, x, picture_keys(seeds, 0), grid[start:], settings.gamma)
        pictures = np.asarray(to_uint8(drawn))
        for name in chain[1:]:
            later = make_settings(cascade.settings(name))
            pictures = cascade.draw_batch(name, text, seeds, later, pictures)
        scores = scorer.score(pictures, asked)
        yield {
            "logsnr": float(grid[start]) if start < len(grid) - 1 else math.inf,
            "accepted": float(np.mean([one.accepted for one in scores])),
            "mse": float(jnp.mean((drawn - x) ** 2)),
        }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("directory", help="exported weights or a work directory of shapes")
    parser.add_argument("--num_prompts", type=int, default=96)
    flags = parser.parse_args(arguments)
    if flags.num_prompts < 1:
        parser.error(f"--num_prompts={flags.num_prompts} must be at least 1")
    try:
        for index, row in enumerate(ladder(flags.directory, flags.num_prompts, LEVELS)):
            if index == 0:
                print(f"of {flags.num_prompts} prompts of one object, by where sampling starts")
                print("log-SNR  obeyed  mean square error of the base against the true picture")
            start = f"{row['logsnr']:7.2f}" if math.isfinite(row["logsnr"]) else "   none"
            print(f"{start}  {row['accepted']:6.1%}  {row['mse']:.5f}", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
