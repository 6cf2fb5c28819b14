"""True and wrong pictures of captions: what the scorer must accept, and what it must not."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

from imagen_jax.data.builtin.shapes import Caption, Scene, caption, render, scene
from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Object

Rng = np.random.Generator
SHIFT = 0.08 * 255


def blur(image: np.ndarray, rng: Rng) -> np.ndarray:
    return ndimage.gaussian_filter(image, (0.7, 0.7, 0.0))


def noise(image: np.ndarray, rng: Rng) -> np.ndarray:
    return image + rng.normal(0.0, 8.0, image.shape)


def shift(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Every channel by up to 8 % of the range."""
    return image + rng.uniform(-SHIFT, SHIFT, 3)


def full_shift(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Every channel by 8 % of the range, up or down."""
    return image + rng.choice((-SHIFT, SHIFT), 3)


DISTORTIONS: dict[str, tuple[Callable, ...]] = {
    "as drawn": (),
    "blur": (blur,),
    "noise": (noise,),
    "shift": (shift,),
    "full shift": (full_shift,),
    "all": (blur, full_shift, noise),
}


def distort(image: np.ndarray, steps: tuple[Callable, ...], rng: Rng) -> np.ndarray:
    values = image.astype(np.float32)
    for step in steps:
        values = step(values, rng)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _other(rng: Rng, names, but: str) -> str:
    return str(rng.choice([name for name in names if name != but]))


def wrong_colour(drawn: Scene, said: Caption, rng: Rng) -> Scene:
    number = rng.integers(len(drawn.objects))
    return _change(drawn, number, colour=_other(rng, COLOURS, drawn.objects[number].colour))


def wrong_shape(drawn: Scene, said: Caption, rng: Rng) -> Scene:
    number = rng.integers(len(drawn.objects))
    return _change(drawn, number, shape=_other(rng, SHAPES, drawn.objects[number].shape))


def _change(drawn: Scene, number: int, **changes) -> Scene:
    objects = list(drawn.objects)
    objects[number] = dataclasses.replace(objects[number], **changes)
    return dataclasses.replace(drawn, objects=tuple(objects))


def wrong_size(drawn: Scene, said: Caption, rng: Rng) -> Scene | None:
    if said.objects[0].size is None:
        return None
    item = drawn.objects[0]
    size = _other(rng, SIZES, item.size)
    radius = rng.uniform(*SIZES[size])
    low, high = radius + 0.02, 0.98 - radius
    x, y = np.clip((item.x, item.y), low, high)
    return _change(drawn, 0, size=size, radius=radius, x=x, y=y)


def wrong_relation(drawn: Scene, said: Caption, rng: Rng) -> Scene | None:
    if said.relation is None:
        return None
    if rng.random() < 0.5:  # along the other axis
        objects = tuple(dataclasses.replace(o, x=o.y, y=o.x) for o in drawn.objects)
        return dataclasses.replace(drawn, objects=objects)
    first, second = drawn.objects  # the other way round
    looks = [{"shape": o.shape, "colour": o.colour} for o in (first, second)]
    swapped = dataclasses.replace(first, **looks[1]), dataclasses.replace(second, **looks[0])
    return dataclasses.replace(drawn, objects=swapped)


def wrong_background(drawn: Scene, said: Caption, rng: Rng) -> Scene | None:
    if said.background is None:
        return None
    return dataclasses.replace(drawn, background=_other(rng, BACKGROUNDS, drawn.background))


def missing(drawn: Scene, said: Caption, rng: Rng) -> Scene:
    number = rng.integers(len(drawn.objects))
    return dataclasses.replace(drawn, objects=drawn.objects[:number] + drawn.objects[number + 1 :])


def extra(drawn: Scene, said: Caption, rng: Rng) -> Scene | None:
    """One more small object, of equal looks among equal ones, where there is room."""
    alike = drawn.kind == "count"
    shape = drawn.objects[0].shape if alike else str(rng.choice(SHAPES))
    colour = drawn.objects[0].colour if alike else str(rng.choice(list(COLOURS)))
    for _ in range(50):
        radius, angle = rng.uniform(*SIZES["small"]), rng.uniform(-0.5, 0.5)
        x, y = rng.uniform(radius + 0.02, 0.98 - radius, 2)
        gaps = [math.hypot(x - o.x, y - o.y) - radius - o.radius for o in drawn.objects]
        if min(gaps) > 0.05:
            added = Object(shape, colour, "small", x, y, radius, angle)
            return dataclasses.replace(drawn, objects=(*drawn.objects, added))
    return None


WRONG_SCENES: dict[str, Callable] = {
    "wrong colour": wrong_colour,
    "wrong shape": wrong_shape,
    "wrong size": wrong_size,
    "wrong relation": wrong_relation,
    "wrong background": wrong_background,
    "missing object": missing,
    "extra object": extra,
}


def blank(size: int, rng: Rng) -> np.ndarray:
    """One colour: a background's, an object's or any."""
    named = [*BACKGROUNDS.values(), *COLOURS.values(), rng.integers(0, 256, 3)]
    return np.broadcast_to(
        np.array(named[rng.integers(len(named))], np.uint8), (size, size, 3)
    ).copy()


def only_noise(size: int, rng: Rng) -> np.ndarray:
    """Noise of any strength, fine or in blobs, around a background or all over."""
    ground = np.array(list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))], np.float32)
    if rng.random() < 0.3:
        return rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
    values = rng.normal(0.0, 1.0, (size, size, 3))
    sigma = rng.uniform(0.0, size / 12)
    if sigma > 0.5:
        values = ndimage.gaussian_filter(values, (sigma, sigma, 0.0))
        values /= values.std()
    values = ground + rng.uniform(5.0, 120.0) * values
    return np.clip(values, 0, 255).astype(np.uint8)


WRONG_PICTURES: dict[str, Callable] = {"blank": blank, "only noise": only_noise}


def true_pictures(
    number: int, size: int, distortion: str, seed: int = 0
) -> Iterator[tuple[np.ndarray, Caption, Scene]]:
    """Pictures of scenes with captions that are true of them."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        drawn = scene(seed, i)
        image = distort(render(drawn, size), DISTORTIONS[distortion], rng)
        yield image, caption(drawn, seed, i), drawn


def wrong_pictures(
    number: int, size: int, kind: str, distortion: str = "as drawn", seed: int = 0
) -> Iterator[tuple[np.ndarray, Caption, Scene | None]]:
    """Pictures that differ from the claims of the caption in one respect, `kind`."""
    rng = np.random.default_rng(seed)
    index = 0
    while number > 0:
        drawn = scene(seed, index)
        said = caption(drawn, seed, index)
        index += 1
        if kind in WRONG_PICTURES:
            changed, image = None, WRONG_PICTURES[kind](size, rng)
        else:
            changed = WRONG_SCENES[kind](drawn, said, rng)
            if changed is None:
                continue
            image = render(changed, size)
        number -= 1
        yield distort(image, DISTORTIONS[distortion], rng), said, changed
