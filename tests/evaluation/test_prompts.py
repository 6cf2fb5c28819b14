"""The prompts of an evaluation: groups, held-out scenes, the same for every checkpoint."""

import collections
import itertools

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config import DataConfig
from imagen_jax.data.builtin.shapes import held_out_pairs, is_held_out_triple
from imagen_jax.data.source import hash01
from imagen_jax.errors import UserError
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.shapes_prompts import SHAPES_GROUPS
from imagen_jax.evaluation.shapes_scorer import ShapesScorer

SHAPES = DataConfig(source="shapes")


def pairs(claims):
    return [(claim.colour, claim.shape) for claim in claims.objects]


def test_each_group_is_held_out_as_its_name_says():
    counts = collections.Counter()
    for prompt in load_prompts(SHAPES, 150).prompts:
        claims = prompt.claims
        assert claims.text == prompt.text
        unseen_pair = any(pair in held_out_pairs() for pair in pairs(claims))
        unseen_triple = claims.kind == "relation" and is_held_out_triple(
            pairs(claims)[0], claims.relation, pairs(claims)[1]
        )
        expected = {
            "one object": ("single", False, False),
            "unseen pair": ("single", True, False),
            "two objects": ("relation", False, False),
            "unseen relation": ("relation", False, True),
            "count": ("count", False, False),
        }[prompt.group]
        assert (claims.kind, unseen_pair, unseen_triple) == expected
        counts[prompt.group] += 1
    assert counts == dict.fromkeys(SHAPES_GROUPS, 30)


def test_a_short_evaluation_is_the_beginning_of_a_long_one():
    short, long = load_prompts(SHAPES, 37), load_prompts(SHAPES, 60)
    assert short.prompts == long.prompts[:37]
    counts = collections.Counter(prompt.group for prompt in short.prompts)
    assert sorted(counts.values()) == [7, 7, 7, 8, 8]
    again = [prompt.repeated(k) for prompt in long.prompts for k in (1, 2)]
    seeds = {prompt.seed for prompt in (*long.prompts, *again)}
    assert len(seeds) == 180 and all(0 <= seed < 2**32 for seed in seeds)
    assert len({prompt.name for prompt in (*long.prompts, *again)}) == 180


def test_true_pictures_obey_their_captions():
    prompts = load_prompts(SHAPES, 50)
    scores = ShapesScorer().score(prompts.true_pictures(64), prompts.prompts)
    # The scorer takes 99.5 % of true pictures: three refusals have probability 0.002.
    assert sum(score.accepted for score in scores) >= 48


def write_folder(path, count):
    """Pictures whose red channel is the number that the caption names."""
    path.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(f"picture {number}")
    return DataConfig(source="folder", path=str(path))


def test_files_give_captions_that_training_shows_and_others(tmp_path):
    data = write_folder(tmp_path / "many", 120)
    prompts = load_prompts(data, 40)
    assert prompts.notes == () and prompts.groups == ("held in", "held out")
    pictures = list(prompts.true_pictures(16))
    assert len(pictures) == 40
    for prompt, picture in zip(prompts.prompts, pictures, strict=True):
        number = int(prompt.text.split()[1])
        assert picture.shape == (16, 16, 3) and np.unique(picture[..., 0]) == [number]
        assert (hash01(f"{number}.png") < 0.05) == (prompt.group == "held out")
    held_in = [p.text for p in prompts.prompts if p.group == "held in"]
    assert len(set(held_in)) == 20
    assert prompts.prompts[:11] == load_prompts(data, 11).prompts


def test_a_folder_too_small_for_a_held_out_split_is_noted(tmp_path):
    prompts = load_prompts(write_folder(tmp_path / "few", 5), 20)
    assert "too small" in prompts.notes[0]
    assert len(prompts.prompts) == 20
    assert len({p.seed for p in prompts.prompts}) == 20


@pytest.mark.parametrize("data", [SHAPES, DataConfig(source="folder", path="x")])
def test_fewer_prompts_than_groups(data):
    with pytest.raises(UserError, match="--num_prompts=1 is too few"):
        load_prompts(data, 1)


def test_true_pictures_can_be_read_in_part():
    prompts = load_prompts(SHAPES, 1000)
    assert [p.shape for p in itertools.islice(prompts.true_pictures(32), 2)] == [(32, 32, 3)] * 2
