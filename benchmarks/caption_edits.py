"""What a base stage reads in its captions: how much worse it denoises when one thing is changed.

    python -m benchmarks.caption_edits runs/a imagen_jax/weights/shapes [--num_scenes=256]

Held-out scenes of `shapes` under noise, with their captions and with captions that are wrong in one
respect alone. Mean squared error of x_hat where that matters: on the background for the
background, else on everything else. A network that does not read a thing has the same error either
way, so the rise is what it makes of it; that shows long before pictures obey.

"order" exchanges the two objects of a relation: the same words, so a bag of words cannot see it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.denoising_error import SCENE_SEED, Denoiser, held_out_scenes, load_denoisers
from imagen_jax.data.builtin.shapes import Scene, caption
from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS, KINDS, MAX_COUNT, SHAPES
from imagen_jax.types import normalize_image

LOGSNRS = (-8, -5, -3, -1)
# Pixels this near to the background's colour, in [-1, 1], are background.
NEAR = 0.02
_OPPOSITE = {"left of": "right of", "above": "below"}
_OPPOSITE |= {b: a for a, b in _OPPOSITE.items()}


def _next(value: str, values: Sequence[str]) -> str:
    values = list(values)
    return values[(values.index(value) + len(values) // 2) % len(values)]


def _first(scene: Scene, **changes: str) -> Scene:
    first = dataclasses.replace(scene.objects[0], **changes)
    return dataclasses.replace(scene, objects=(first, *scene.objects[1:]))


# Each makes of a scene the one that a wrong caption describes; by the kinds of scene it is for.
EDITS: dict[str, tuple[tuple[str, ...], Callable[[Scene], Scene]]] = {
    "background": (
        KINDS,
        lambda s: dataclasses.replace(s, background=_next(s.background, BACKGROUNDS)),
    ),
    "colour": (("single",), lambda s: _first(s, colour=_next(s.objects[0].colour, COLOURS))),
    "shape": (("single",), lambda s: _first(s, shape=_next(s.objects[0].shape, SHAPES))),
    "count": (
        ("count",),
        lambda s: dataclasses.replace(
            s, objects=s.objects[:1] * (1 + (len(s.objects) + 1) % MAX_COUNT)
        ),
    ),
    "relation": (
        ("relation",),
        lambda s: dataclasses.replace(s, relation=_OPPOSITE[s.relation]),
    ),
    "order": (("relation",), lambda s: dataclasses.replace(s, objects=s.objects[::-1])),
}


@dataclasses.dataclass(frozen=True)
class Rise:
    """Of the error, in percent of that with the right caption.

    Attributes:
      mean: over scenes and noise levels.
      error: standard error of the mean over scenes.
      by_level: by log-SNR.
    """

    mean: float
    error: float
    by_level: dict[int, float]


def rises(denoiser: Denoiser, num_scenes: int) -> dict[str, Rise]:
    """The rise of each of `EDITS` over `num_scenes` scenes of each kind."""
    own: dict[str, list[np.ndarray]] = {name: [] for name in EDITS}
    edited: dict[str, list[np.ndarray]] = {name: [] for name in EDITS}
    for kind in KINDS:
        scenes, texts, x = held_out_scenes(num_scenes, denoiser.resolution, kind=kind)
        colours = jnp.asarray([BACKGROUNDS[one.background] for one in scenes], jnp.float32)
        distance = jnp.abs(x - normalize_image(colours)[:, None, None]).max(-1)
        background = np.asarray(distance < NEAR)
        eps = jax.random.normal(jax.random.key(0), x.shape)
        named = np.array([one.background in text for one, text in zip(scenes, texts, strict=True)])
        right = _errors(denoiser, x, eps, texts)
        for name, (kinds, edit) in EDITS.items():
            if kind not in kinds:
                continue
            wrong = _errors(denoiser, x, eps, edited_captions(scenes, edit))
            area, rows = ~background, np.ones(len(scenes), bool)
            if name == "background":
                area, rows = background, named
            own[name].append(_mean(right, area)[:, rows])
            edited[name].append(_mean(wrong, area)[:, rows])
    return {
        name: _rise(np.concatenate(own[name], 1), np.concatenate(edited[name], 1)) for name in EDITS
    }


def edited_captions(scenes: Sequence[Scene], edit: Callable[[Scene], Scene]) -> list[str]:
    """The captions of `held_out_scenes`, in the same phrasing, of the scenes that `edit` makes."""
    return [caption(edit(one), SCENE_SEED, index).text for index, one in enumerate(scenes)]


def _errors(denoiser: Denoiser, x: jax.Array, eps: jax.Array, texts: Sequence[str]) -> np.ndarray:
    """`[levels, B, H, W]`."""
    text = denoiser.encode(texts)
    x_hats = [denoiser.x_hat(x, eps, text, float(level)) for level in LOGSNRS]
    return np.stack([np.mean((x_hat - x) ** 2, axis=-1) for x_hat in x_hats])


def _mean(error: np.ndarray, area: np.ndarray) -> np.ndarray:
    """`[levels, B]`: the mean of `error` `[levels, B, H, W]` over `area` `[B, H, W]`."""
    return (error * area).sum((2, 3)) / area.sum((1, 2))


def _rise(own: np.ndarray, edited: np.ndarray) -> Rise:
    """Of errors `[levels, B]`; each level counts equally, whatever its errors' size."""
    base = own.mean(1, keepdims=True)
    relative = 100.0 * (edited - own) / base
    scenes = relative.mean(0)
    levels = dict(zip(LOGSNRS, map(float, relative.mean(1)), strict=True))
    return Rise(float(scenes.mean()), float(scenes.std() / np.sqrt(len(scenes))), levels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--stage", default="base")
    parser.add_argument("--num_scenes", type=int, default=256)
    flags = parser.parse_args()
    denoisers = load_denoisers(parser, flags.directories, flags.stage)
    for directory, denoiser in denoisers.items():
        print(f"{directory}: rise of the error in %, mean and standard error; then by log-SNR")
        for name, rise in rises(denoiser, flags.num_scenes).items():
            levels = ", ".join(f"{level}: {value:+.1f}" for level, value in rise.by_level.items())
            print(f"{name:>12} {rise.mean:+7.1f} ({rise.error:.1f})   {levels}", flush=True)


if __name__ == "__main__":
    main()
