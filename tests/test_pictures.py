"""Pictures as files."""

import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax import pictures as images

ODD_TEXTS = [
    "",
    "a red circle " * 400,
    "x" * 10_000,
    "\N{GRINNING FACE} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}",
    "دائرة حمراء",
    "赤い丸",
    "half a pair: \ud83d",
    "two\nlines\tand \0 nothing",
]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_metadata_is_read_back(tmp_path):
    picture = noise(5, 7, 3)
    about = {"prompt": "ein größerer Kreis \N{GRINNING FACE}", "seed": 3, "settings": {"eta": 0.5}}
    images.save_png(tmp_path / "a.png", picture, about)
    with Image.open(tmp_path / "a.png") as file:
        np.testing.assert_array_equal(np.asarray(file), picture)
        assert file.text["prompt"] == about["prompt"]
        assert json.loads(file.text["seed"]) == 3
        assert json.loads(file.text["settings"]) == {"eta": 0.5}
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == about


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_any_text_can_be_a_label_and_metadata(tmp_path, text):
    pictures = noise(1, 2, 32, 32, 3)
    grid = images.labelled_grid(pictures, [text])
    assert grid.shape[1] == 2 * 128 + 3 * images.PADDING
    assert grid.shape[0] <= 128 + 60  # two lines at most
    images.save_png(tmp_path / "a.png", pictures[0, 0], {"prompt": text})
    json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))


def test_grid_holds_every_picture_in_its_place():
    pictures = noise(3, 2, 150, 150, 3)
    grid = images.labelled_grid(pictures, ["one", "two", "three"])
    height = grid.shape[0] // 3
    for row in range(3):
        for column in range(2):
            x = images.PADDING + column * (150 + images.PADDING)
            # Where in its row it lies depends on the label's height; look for it.
            found = [
                y
                for y in range(row * height, row * height + 60)
                if np.array_equal(grid[y : y + 150, x : x + 150], pictures[row, column])
            ]
            assert len(found) == 1


def test_labels_are_drawn():
    pictures = np.full((1, 1, 150, 150, 3), 255, np.uint8)
    assert (images.labelled_grid(pictures, ["a red circle"]) < 100).any()
    assert (images.labelled_grid(pictures, [""]) == 255).all()


def test_small_pictures_are_enlarged_without_smoothing():
    pictures = noise(1, 1, 16, 16, 3)
    grid = images.labelled_grid(pictures, [""])
    large = pictures[0, 0].repeat(8, axis=0).repeat(8, axis=1)
    p = images.PADDING
    assert np.array_equal(grid[-128 - 2 * p : -2 * p, p : p + 128], large)


def test_a_table_holds_every_picture_in_its_place():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 12, 3), np.uint8)
    table = images.labelled_table(
        pictures, ["a", "b" * 100], ["x", "y", "z" * 200], framed={(1, 2)}
    )
    found = []
    for picture in (picture for row in pictures for picture in row):
        large = picture.repeat(16, axis=0).repeat(16, axis=1)
        corners = np.argwhere((table == large[0, 0]).all(-1))
        places = [
            (y, x)
            for y, x in corners
            if table[y : y + 128, x : x + 192].shape == large.shape
            and (table[y : y + 128, x : x + 192] == large).all()
        ]
        assert len(places) == 1
        found += places
    tops, lefts = [y for y, _ in found], [x for _, x in found]
    assert len(set(tops)) == 2 and lefts[:3] == lefts[3:] == sorted(lefts[:3])
    frame = (table == (0xF2, 0x8E, 0x2B)).all(-1)
    y, x = found[5]
    assert frame[y - images.PADDING : y, x : x + 192].all() and frame[y : y + 128, x + 192 :].all()
    frame[y - images.PADDING : y + 128 + images.PADDING, x - images.PADDING :] = False
    assert not frame.any()
