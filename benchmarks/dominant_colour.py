"""Whether a `shapes` cascade draws single objects in the colour that the prompt names.

    python benchmarks/dominant_colour.py [--workdir=DIR] [--num_prompts=200]

Without a workdir it takes the weights that ship. The prompts are captions of single objects from
another seed than training's; no combination in them is held out, and short ones occur in both. The
dominant colour of a picture is the one of the ten object colours that is nearest to most of the
pixels that are no background.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from imagen_jax.data.builtin.shapes import captions
from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS
from imagen_jax.sampling import Cascade

SEED = 2024  # of the captions; training uses another


def dominant_colour(picture: np.ndarray) -> str | None:
    """The name of the colour of most object pixels of a uint8 `[H, W, 3]` picture.

    A pixel belongs to the palette entry nearest in RGB, object colours and backgrounds alike.
    None if fewer than 1 % of the pixels are nearest to an object colour.
    """
    names = [*COLOURS, *BACKGROUNDS]
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], np.float32)
    distance = np.linalg.norm(picture[:, :, None].astype(np.float32) - palette, axis=-1)
    counts = np.bincount(distance.argmin(-1).ravel(), minlength=len(names))[: len(COLOURS)]
    return names[counts.argmax()] if counts.max() >= 0.01 * distance[..., 0].size else None


def score(cascade: Cascade, num_prompts: int) -> dict[str, float]:
    """Share of prompts whose one picture has the right dominant colour, by stage."""
    wanted = list(itertools.islice(captions(SEED, kind="single"), num_prompts))
    result = cascade([caption.text for caption in wanted], num_images=1, progress=True)
    return {
        stage: float(
            np.mean(
                [
                    dominant_colour(picture) == caption.objects[0].colour
                    for picture, caption in zip(pictures, wanted, strict=True)
                ]
            )
        )
        for stage, pictures in result.images.items()
    }


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", help="a run; default: the shipped weights")
    parser.add_argument("--num_prompts", type=int, default=200)
    flags = parser.parse_args()
    cascade = (
        Cascade.from_directory(flags.workdir) if flags.workdir else Cascade.from_name("shapes")
    )
    for stage, share in score(cascade, flags.num_prompts).items():
        print(f"{stage}: right dominant colour in {share:.1%} of {flags.num_prompts} prompts")


if __name__ == "__main__":
    main()
