"""The weights in the package: they load, they fit, and they draw what the prompt says."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.config import DataConfig, load_config
from imagen_jax.data.builtin.shapes import captions, render, scene
from imagen_jax.data.builtin.shapes.scenes import BACKGROUNDS, COLOURS
from imagen_jax.data.images import resize_uint8
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.sampling import Cascade
from imagen_jax.weights import artefact
from imagen_jax.weights.shipped import load_shipped, shipped_names

MAX_BYTES = 12_000_000
CAPTION_SEED = 2024  # training uses another seed


def dominant_colour(picture: np.ndarray) -> str | None:
    """The name of the object colour with the most pixels in a uint8 `[H, W, 3]` picture.

    Each pixel counts for the nearest colour in RGB, among object colours and backgrounds. None if
    every object colour has fewer than 1 % of the pixels.
    """
    names = [*COLOURS, *BACKGROUNDS]
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], np.float32)
    distance = np.linalg.norm(picture[:, :, None].astype(np.float32) - palette, axis=-1)
    counts = np.bincount(distance.argmin(-1).ravel(), minlength=len(names))[: len(COLOURS)]
    return names[counts.argmax()] if counts.max() >= 0.01 * distance[..., 0].size else None


def test_what_ships_is_complete_and_small():
    for name in shipped_names():
        shipped = load_shipped(name)
        assert shipped.config.name == name
        assert set(shipped.stages) == set(shipped.config.stages)
        folder = Path(artefact.__file__).parents[1] / "weights" / name
        assert sum(file.stat().st_size for file in folder.iterdir()) <= MAX_BYTES
        assert {"README.md", "LICENSE", "config.json"} <= {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("name", shipped_names())
def test_what_ships_is_built_and_sampled_as_its_config_says(name):
    shipped = load_shipped(name).config
    config = load_config(str(Path(__file__).parents[2] / "configs" / f"{name}.py"))
    assert shipped.text == config.text
    assert list(shipped.stages) == list(config.stages)
    for stage, written in config.stages.items():
        # How long each stage was trained is its own; the model card says it.
        assert dataclasses.replace(shipped.stages[stage], train=written.train) == written


def test_the_colour_scorer_names_the_colours_of_true_renders():
    for index, caption in enumerate(itertools.islice(captions(7, kind="single"), 100)):
        picture = render(scene(7, index, kind="single"), 64)
        assert dominant_colour(picture) == caption.objects[0].colour


@pytest.mark.slow
def test_shapes_draws_the_colour_of_the_prompt():
    asked = list(itertools.islice(captions(CAPTION_SEED, kind="single"), 30))
    pictures = Cascade.from_name("shapes")([one.text for one in asked], num_images=1).images["sr64"]
    right = [
        dominant_colour(picture) == caption.objects[0].colour
        for picture, caption in zip(pictures, asked, strict=True)
    ]
    # A cascade that is right in 80 % of all prompts falls below 70 % of 30 with probability 0.09.
    assert np.mean(right) >= 0.7, right


@pytest.mark.slow
def test_emoji_draws_the_picture_of_that_name():
    prompts = load_prompts(DataConfig(source="emoji"), 32)
    known = [i for i, prompt in enumerate(prompts.prompts) if prompt.group == "held in"]
    true = np.stack(list(prompts.true_pictures(64)))[known]
    texts = [prompts.prompts[i].text for i in known]
    drawn = Cascade.from_name("emoji")(texts, num_images=1).images["sr64"]
    small_true, small_drawn = (
        np.stack([resize_uint8(picture, 16, 16) for picture in pictures]).astype(np.float32)
        for pictures in (true, drawn)
    )
    distances = np.square(small_drawn[:, None] - small_true[None]).mean((2, 3, 4))
    own_is_nearest = distances.argmin(axis=1) == np.arange(len(known))
    # By chance one of 16 would be.
    assert own_is_nearest.mean() >= 0.5, dict(zip(texts, own_is_nearest, strict=True))
